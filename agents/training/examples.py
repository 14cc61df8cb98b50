"""Training and evaluation examples: the agents' prompts about a corpus, with the right completions.

Prompts are those of inference, and completions what it reads. There are none for assign: all it
asks is which code comes first, and no corpus here puts its codes in order.
"""

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from agents.analyze.llm import Quoted, Reply, locate_quote, passage_of, split_windows
from agents.node import build_messages
from agents.pipeline import Pipeline
from agents.training.evidence import (
    Mark,
    evidence_marks,
    gold_codes,
    locate_document,
    overlaps,
    reported_codes,
)
from agents.training.split import sentence_key
from agents.verify.llm import build_question
from agents.verify.reranking import rerank_input
from clh.corpora import Example
from clh.document.reader import Sentence
from clh.errors import InputError
from clh.models import language
from clh.models.language import Message
from clh.retrieval.lexical import expand
from clh.schema import Candidate, Note, Shape, Term
from clh.training.language import Task

_POOL = 5  # examples to draw each from: enough that no document gives many


class Drawing(Protocol):
    """How examples are drawn."""

    @property
    def negatives(self) -> float:
        """Wrong candidates for each right one."""
        ...

    @property
    def seed(self) -> int:
        """Random seed."""
        ...


class PromptExample(Shape):
    """A prompt of an agent about a document, and the right completion, with a thought for it."""

    document: str
    prompt: tuple[Message, ...]
    thought: str
    completion: str


class AnalyzeExample(PromptExample):
    """Analyze's prompt about a window of a note; the marks are in its passage."""

    task: Literal["analyze"] = "analyze"
    passage: Note
    marks: tuple[Mark, ...]


class VerifyExample(PromptExample):
    """Verify's prompt about a candidate."""

    task: Literal["verify"] = "verify"
    texts: tuple[str, str]  # as the reranker reads it


AgentExample = AnalyzeExample | VerifyExample
AGENT_EXAMPLE: TypeAdapter[AgentExample] = TypeAdapter(
    Annotated[AgentExample, Field(discriminator="task")]
)
ExampleT = TypeVar("ExampleT", AnalyzeExample, VerifyExample)


def with_thought(example: AgentExample) -> AgentExample:
    """The example with its thought in front of the completion."""
    completion = language.with_thinking(example.thought, example.completion)
    return example.model_copy(update={"completion": completion})


def draw_examples(
    documents: Sequence[Example],
    pipeline: Pipeline,
    drawing: Drawing,
    sizes: Mapping[Task, int],
    unseen: Collection[str] = (),
) -> list[AgentExample]:
    """Examples of each task at random: as many as `sizes` has, or as there are.

    Documents come in random order, until there are several times as many examples to draw from.
    Raises InputError where a task has none.
    """
    from tqdm import tqdm

    rng = random.Random(drawing.seed)  # noqa: S311
    pools: dict[Task, list[AgentExample]] = {task: [] for task in sizes}
    shuffled = rng.sample(documents, len(documents))
    for document in tqdm(shuffled, unit="document", leave=False, disable=None):
        for example in build_examples(document, pipeline, drawing.negatives, rng, unseen):
            if example.task in pools:
                pools[example.task].append(example)
        if all(len(pool) >= _POOL * sizes[task] for task, pool in pools.items()):
            break
    drawn: list[AgentExample] = []
    for task, pool in pools.items():
        if not pool:
            raise InputError(f"no document has an example for {task}: give more, or more evidence")
        drawn += rng.sample(pool, min(sizes[task], len(pool)))
    return rng.sample(drawn, len(drawn))


def build_examples(
    document: Example,
    pipeline: Pipeline,
    negatives: float,
    rng: random.Random,
    unseen: Collection[str] = (),
) -> list[AgentExample]:
    """All windows of a document, and of its candidates the right ones with `negatives` for each.

    What shows an `unseen` sentence, by its key, is left out. Raises InputError for a document that
    has codes but no evidence.
    """
    terms, candidates = locate_document(document, pipeline)
    marks = evidence_marks(document, pipeline.system)
    analyze = _analyze_examples(document, marks, terms, candidates, pipeline, unseen)
    right, wrong = _verify_examples(document, marks, terms, candidates, pipeline, unseen)
    drawn = rng.sample(wrong, min(round(negatives * len(right)), len(wrong)))
    return [*analyze, *right, *drawn]


# --- analyze ---------------------------------------------------------------------------------


def _analyze_examples(
    document: Example,
    marks: Sequence[Mark],
    terms: Sequence[Term],
    candidates: Sequence[Sequence[Candidate]],
    pipeline: Pipeline,
    unseen: Collection[str],
) -> Iterator[AnalyzeExample]:
    note, settings = document.note, pipeline.settings
    sentences = pipeline.reader.all_sentences(note.text)
    expected = [
        *_terms_of_marked_sentences(marks, terms, candidates, sentences, pipeline),
        *_terms_of_marks(note, marks, sentences, pipeline),
    ]
    for window in split_windows(sentences, settings.analyze.llm.window_words):
        if any(sentence_key(sentence.text) in unseen for sentence in window):
            continue
        passage = passage_of(note, window)
        by_start = {
            term.quote.start: quoted
            for term in expected
            # Inference takes the first place that has a quote: no other can be asked for.
            if locate_quote(note, passage, term.quote.text) == term.quote
            and (quoted := _quoted(term)) is not None
        }
        reply = [by_start[start] for start in sorted(by_start)]
        yield AnalyzeExample(
            document=document.id,
            prompt=tuple(build_messages("analyze", text=passage.text, policy=settings.policy)),
            thought=_analyze_thought(reply),
            completion=_analyze_completion(reply),
            passage=Note(id=document.id, text=passage.text),
            marks=tuple(
                Mark(
                    start=max(mark.start, passage.start) - passage.start,
                    end=min(mark.end, passage.end) - passage.start,
                    code=mark.code,
                )
                for mark in marks
                if overlaps(mark, passage)
            ),
        )


def _terms_of_marked_sentences(
    marks: Sequence[Mark],
    terms: Sequence[Term],
    candidates: Sequence[Sequence[Candidate]],
    sentences: Sequence[Sentence],
    pipeline: Pipeline,
) -> Iterator[Term]:
    """Of a sentence marked as a whole, the terms that lead to its codes, by their closest texts.

    CodiEsp's English is marked so. A code that no term of its sentence leads to is looked up by its
    title, at the term closest to that.
    """
    wide = [mark for mark in marks if any(_covers(mark, sentence) for sentence in sentences)]
    lead_terms: list[dict[str, str]] = [{} for _ in terms]  # of each code, best first
    for by_code, found in zip(lead_terms, candidates, strict=True):
        for candidate, code in zip(found, reported_codes(found, pipeline.system), strict=True):
            by_code.setdefault(code, candidate.matched)
    for mark in wide:
        places = [place for place, term in enumerate(terms) if overlaps(mark, term.quote)]
        if places and not any(mark.code in lead_terms[place] for place in places):
            title = pipeline.system[mark.code].title
            vectors = pipeline.embedder.encode(
                [title, *(terms[place].lead_term for place in places)]
            )
            closest = terms[places[int((vectors[1:] @ vectors[0]).argmax())]]
            yield closest.model_copy(update={"lead_term": title})
    for term, by_code in zip(terms, lead_terms, strict=True):
        marked = {mark.code for mark in wide if overlaps(mark, term.quote)}
        best = next((by_code[code] for code in by_code if code in marked), None)
        if best is not None:
            yield term.model_copy(update={"lead_term": best})


def _terms_of_marks(
    note: Note, marks: Sequence[Mark], sentences: Sequence[Sentence], pipeline: Pipeline
) -> Iterator[Term]:
    """The marks that are shorter than their sentences, by the text of the code closest to them."""
    short = [
        (mark, sentence)
        for mark in marks
        for sentence in sentences
        if _lies_within(mark, sentence) and not _covers(mark, sentence)
    ]
    words = [" ".join(note.text[mark.start : mark.end].lower().split()) for mark, _ in short]
    searched = pipeline.retriever.search([expand(text) for text in words])
    for (mark, sentence), found in zip(short, searched, strict=True):
        codes = reported_codes(found, pipeline.system)
        closest = (hit.matched for hit, code in zip(found, codes, strict=True) if code == mark.code)
        yield Term(
            quote=note.span(mark.start, mark.end),
            sentence=note.span(sentence.start, sentence.end),
            lead_term=next(closest, pipeline.system[mark.code].title),
            status=sentence.mention(mark.start, mark.end).status,
        )


def _quoted(term: Term) -> Quoted | None:
    """The term as a reply gives it; None for one that is too long for a reply."""
    quote = " ".join(term.quote.text.split())
    for lead_term in (term.lead_term, quote):
        with suppress(ValidationError):
            return Quoted(quote=quote, lead_term=lead_term, status=term.status)
    return None


def _analyze_completion(terms: Sequence[Quoted]) -> str:
    most = Reply.model_json_schema()["properties"]["terms"]["maxItems"]
    return json.dumps(Reply(terms=[*terms[:most]]).model_dump(), ensure_ascii=False)


def _analyze_thought(terms: Sequence[Quoted]) -> str:
    """The thought before analyze's reply: what is named, and what it is looked up as."""
    return "; ".join(f"{term.quote}: {term.lead_term}" for term in terms) or "nothing is named"


def _covers(mark: Mark, sentence: Sentence) -> bool:
    return mark.start <= sentence.start and sentence.end <= mark.end


def _lies_within(mark: Mark, sentence: Sentence) -> bool:
    return sentence.start <= mark.start and mark.end <= sentence.end


# --- verify ----------------------------------------------------------------------------------


def _verify_examples(
    document: Example,
    marks: Sequence[Mark],
    terms: Sequence[Term],
    candidates: Sequence[Sequence[Candidate]],
    pipeline: Pipeline,
    unseen: Collection[str],
) -> tuple[list[VerifyExample], list[VerifyExample]]:
    """The candidates marked in their term's sentence, and those that the note has nowhere."""
    gold = gold_codes(document, pipeline.system)
    right: list[VerifyExample] = []
    wrong: list[VerifyExample] = []
    for term, found in zip(terms, candidates, strict=True):
        if sentence_key(term.sentence.text) in unseen:
            continue
        here = {mark.code for mark in marks if overlaps(mark, term.sentence)}
        codes = reported_codes(found, pipeline.system)
        meaning = next((code for code in codes if code in here), None)
        for candidate, code in zip(found, codes, strict=True):
            if code in gold and code not in here:
                continue  # the note means it elsewhere, and perhaps here
            example = VerifyExample(
                document=document.id,
                prompt=tuple(build_question(term, candidate, pipeline.system)),
                thought=_verify_thought(term, code if code in here else meaning, pipeline),
                completion="yes" if code in here else "no",
                texts=rerank_input(term, candidate),
            )
            (right if code in here else wrong).append(example)
    return right, wrong


def _verify_thought(term: Term, code: str | None, pipeline: Pipeline) -> str:
    """The thought before verify's reply: what the term means, whatever is asked about it.

    It leaves the comparison to the reply, whose probability would tell nothing after a verdict.
    """
    meaning = "no code" if code is None else pipeline.system[code].title
    return f"{term.quote.text} means {meaning}"
