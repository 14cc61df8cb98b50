"""What models learn the agents' work from: the agents' own questions about a corpus, answered.

Questions to a language model are asked as in inference, and replies read by the same code. Assign
is left out: all it asks is which code comes first, and no corpus here puts its codes in order.
"""

import argparse
import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

import prompts
from agents.analyze import Quoted, Reply, extract_by_retrieval, find, windows
from agents.context import Context
from agents.locate import search
from agents.state import conversation
from agents.verify import ANSWERS, question, same_laterality, texts
from clh import corpora
from clh.config import Settings
from clh.corpora import Example
from clh.document.reader import Reader, Sentence
from clh.errors import InputError, ReplyError
from clh.evaluation import runs
from clh.icd.tabular import CodeSystem, load_tabular
from clh.models import language, weights
from clh.models.language import LanguageModel, LocalModel, Message
from clh.retrieval.index import open_index
from clh.retrieval.lexical import expand
from clh.schema import Candidate, Note, Shape, Span, Term
from clh.training import loop, rewards
from clh.training.language import Recipe, Task
from clh.training.pairs import reported_code

ShapeT = TypeVar("ShapeT", bound=Shape)

Completions = Sequence[Sequence[Mapping[str, str]]]

AT_ONCE = 64  # questions that a model answers before its mistakes are written down

_TELLING = 5  # words; a shorter sentence is in many notes
_POOL = 5  # questions to draw each from: enough that no document gives many


class Drawing(Protocol):
    """How questions are drawn."""

    @property
    def negatives(self) -> float:
        """Wrong candidates for each right one."""
        ...

    @property
    def seed(self) -> int:
        """Of the draw."""
        ...


class Mark(Shape):
    """Where a passage says what a code stands for."""

    start: int
    end: int
    code: str


class Asked(Shape):
    """What an agent asks about a document, the reply that is right, and a thought before it."""

    document: str
    messages: tuple[Message, ...]
    thought: str
    reply: str


class Window(Asked):
    """Analyze's question about a window of a note."""

    task: Literal["analyze"] = "analyze"
    passage: Note
    marks: tuple[Mark, ...]


class Question(Asked):
    """Verify's question about a candidate."""

    task: Literal["verify"] = "verify"
    texts: tuple[str, str]  # as the cross-encoder reads it


Item = Window | Question
_ITEM: TypeAdapter[Item] = TypeAdapter(Annotated[Item, Field(discriminator="task")])


@dataclass(frozen=True)
class Split:
    """The documents that a run learns from, those it holds out, and others not to be seen."""

    dataset: str
    learned: list[Example]
    held_out: list[Example]
    others: list[Example]

    @classmethod
    def read(cls, arguments: argparse.Namespace, recipe: loop.Recipe) -> Self:
        """The train split, a share of which is held out, and the splits of `arguments.unseen`."""
        name, folder = arguments.dataset, arguments.data_dir
        train = list(corpora.read(name, folder, "train"))[: arguments.limit]
        learned, held_out = corpora.hold_out(train, recipe.held_out, recipe.seed)
        others = [one for split in arguments.unseen for one in corpora.read(name, folder, split)]
        return cls(name, learned, held_out, others)

    def unseen(self, reader: Reader) -> set[str]:
        """The sentences that must not be learned, as `key` names them."""
        return said([*self.held_out, *self.others], reader)

    def config(self, context: Context, recipe: loop.Recipe) -> dict[str, Any]:
        """What makes a run on these documents another run."""
        base = weights.resolve(recipe.base, context.settings.cache_dir)
        return {
            "recipe": recipe.model_dump(mode="json"),
            "dataset": self.dataset,
            "documents": len(self.learned),
            "held_out": len(self.held_out),
            "unseen": dict(Counter(one.split for one in self.others)),
            "settings": context.settings.hash,
            "models": context.models,
            "base": weights.model_id(recipe.base, base),
            "icd_release": context.system.release,
            "git": runs.git_commit(),
        }


class Preference(Shape):
    """A question, the right reply, and the model's own, which is worse."""

    messages: tuple[Message, ...]
    reply: str
    rejected: str


@dataclass(frozen=True)
class Lessons:
    """What a run learns from, what chooses its best epoch, and where it is kept."""

    learned: list[Item]
    held_out: list[Item]
    context: Context
    folder: runs.Folder

    def score(self, model: LanguageModel) -> dict[str, float]:
        """What `score` says of a model, by the documents held out."""
        return asyncio.run(score(self.held_out, model))


def prepare(arguments: argparse.Namespace, recipe: Recipe, *files: str) -> Lessons:
    """The lessons of a run, made once, and its folder, in which each of `files` grows line by line.

    The documents held out are those that the towers hold out, too. What is learned from has no
    sentence of theirs, nor of the splits that `arguments.unseen` names. Raises InputError for data
    that cannot be used.
    """
    split = Split.read(arguments, recipe)
    context = asking(arguments.dataset, recipe.candidates)
    config = {
        **split.config(context, recipe),
        "prompts": {task: prompts.sha256(task) for task in recipe.learned},
    }
    folder = runs.Folder(arguments.output, config, files)
    learned = kept(
        folder.path / "learned.jsonl",
        _ITEM,
        lambda: draw(split.learned, context, recipe, recipe.learned, split.unseen(context.reader)),
    )
    return Lessons(
        learned=list(map(thoughtful, learned)) if recipe.think else learned,
        held_out=kept(
            folder.path / "held_out.jsonl",
            _ITEM,
            lambda: draw(split.held_out, context, recipe, recipe.scored),
        ),
        context=context,
        folder=folder,
    )


def asking(dataset: str, candidates: int) -> Context:
    """What asks questions about a dataset, for each term about so many candidates.

    No prior is used: one was counted on the very documents that are learned from, and would lead
    every term to their codes. Nor are whole sentences: a model is to name mentions.
    """
    corpus = corpora.find(dataset)
    settings = Settings.load(
        corpus.profile,
        policy=corpus.policy,
        analyze={"sentences": False},
        locate={"prior": "", "candidates": candidates},
    )
    return _load(settings, load_tabular())


def thoughtful(item: Item) -> Item:
    """The item with its thought in front of the reply."""
    return item.model_copy(update={"reply": language.with_thinking(item.thought, item.reply)})


def draw(
    examples: Sequence[Example],
    context: Context,
    recipe: Drawing,
    sizes: Mapping[Task, int],
    unseen: Collection[str] = (),
) -> list[Item]:
    """Questions about documents, of each task as many as `sizes` says or as there are, at random.

    Documents come in random order, until there are several times as many questions to draw from.
    Raises InputError where a task has none.
    """
    from tqdm import tqdm

    rng = random.Random(recipe.seed)  # noqa: S311
    pools: dict[Task, list[Item]] = {task: [] for task in sizes}
    shuffled = rng.sample(examples, len(examples))
    for example in tqdm(shuffled, unit="document", leave=False, disable=None):
        for item in ask(example, context, recipe.negatives, rng, unseen):
            if item.task in pools:
                pools[item.task].append(item)
        if all(len(pool) >= _POOL * sizes[task] for task, pool in pools.items()):
            break
    drawn: list[Item] = []
    for task, pool in pools.items():
        if not pool:
            raise InputError(f"no document has a question for {task}: give more, or more evidence")
        drawn += rng.sample(pool, min(sizes[task], len(pool)))
    return rng.sample(drawn, len(drawn))


def ask(
    example: Example,
    context: Context,
    negatives: float,
    rng: random.Random,
    unseen: Collection[str] = (),
) -> list[Item]:
    """All windows of a document, and of its candidates the right ones with `negatives` for each.

    A window or question that shows an `unseen` sentence is left out. Raises InputError for an
    example that has codes but no evidence.
    """
    terms, found = located(example, context)
    marks = evidence(example, context)
    asked = _windows(example, marks, terms, found, context, unseen)
    right, wrong = _questions(example, marks, terms, found, context, unseen)
    return [*asked, *right, *rng.sample(wrong, min(round(negatives * len(right)), len(wrong)))]


def said(examples: Sequence[Example], reader: Reader) -> set[str]:
    """The sentences of some documents, those of few words left out, as `key` names them."""
    return {
        key(sentence.text)
        for example in examples
        for sentence in reader.all_sentences(example.note.text)
    } - {""}


def key(sentence: str) -> str:
    """A sentence by its words, all figures alike; "" for one of few words."""
    words = re.findall(r"\w+", re.sub(r"\d+", "0", sentence.casefold()))
    return " ".join(words) if len(words) >= _TELLING else ""


# --- what is right --------------------------------------------------------------------------


def located(example: Example, context: Context) -> tuple[list[Term], list[list[Candidate]]]:
    """A document's terms, and the candidates of each that verify is asked about.

    Raises InputError for an example that has codes but no evidence.
    """
    if example.codes and not example.evidence:
        raise InputError(f"{example.id} has codes without evidence: agents learn from evidence")
    terms = extract_by_retrieval(example.note, context)
    found = search([term.lead_term for term in terms], context)
    return terms, [same_laterality(*pair) for pair in zip(terms, found, strict=True)]


def gold_codes(example: Example, context: Context) -> set[str | None]:
    """The note's codes, as locate reports them."""
    return {reported_code(code, context.system) for code in example.codes}


def evidence(example: Example, context: Context) -> list[Mark]:
    """The evidence, by codes as locate reports them; those that the release lacks are left out."""
    return [
        Mark(start=span.start, end=span.end, code=code)
        for gold in dict.fromkeys(one.code for one in example.evidence)
        if (code := reported_code(gold, context.system)) is not None
        for span in example.spans(gold)
    ]


def _windows(
    example: Example,
    marks: Sequence[Mark],
    terms: Sequence[Term],
    found: Sequence[Sequence[Candidate]],
    context: Context,
    unseen: Collection[str],
) -> Iterator[Window]:
    note, settings = example.note, context.settings
    sentences = context.reader.all_sentences(note.text)
    named = [
        *_named_in_sentences(marks, terms, found, sentences, context),
        *_named_by_marks(note, marks, sentences, context),
    ]
    for window in windows(sentences, settings.analyze):
        if any(key(sentence.text) in unseen for sentence in window):
            continue
        passage = note.span(window[0].start, window[-1].end)
        quoted = {
            term.quote.start: one
            for term in named
            # Inference takes the first place that says a quote: no other can be asked for.
            if find(note, passage, term.quote.text) == term.quote
            and (one := _quoted(term)) is not None
        }
        listed = [quoted[start] for start in sorted(quoted)]
        yield Window(
            document=example.id,
            messages=tuple(conversation("analyze", text=passage.text, policy=settings.policy)),
            thought=_summed_up(listed),
            reply=_written(listed),
            passage=Note(id=example.id, text=passage.text),
            marks=tuple(
                Mark(
                    start=max(one.start, passage.start) - passage.start,
                    end=min(one.end, passage.end) - passage.start,
                    code=one.code,
                )
                for one in marks
                if meet(one, passage)
            ),
        )


def _named_in_sentences(
    marks: Sequence[Mark],
    terms: Sequence[Term],
    found: Sequence[Sequence[Candidate]],
    sentences: Sequence[Sentence],
    context: Context,
) -> Iterator[Term]:
    """Of a sentence marked as a whole the terms that lead to its codes, by what they lay close to.

    CodiEsp's English is marked so. A code that no term of its sentence leads to is named by its
    title, at the term closest to that.
    """
    wide = [mark for mark in marks if any(_covers(mark, one) for one in sentences)]
    texts: list[dict[str, str]] = [{} for _ in terms]  # that lead to codes, best first
    for known, near in zip(texts, found, strict=True):
        for one, code in zip(near, reported_codes(near, context), strict=True):
            known.setdefault(code, one.matched)
    for mark in wide:
        places = [place for place, term in enumerate(terms) if meet(mark, term.quote)]
        if places and not any(mark.code in texts[place] for place in places):
            title = context.system[mark.code].title
            vectors = context.tower.encode([title, *(terms[one].lead_term for one in places)])
            closest = terms[places[int((vectors[1:] @ vectors[0]).argmax())]]
            yield closest.model_copy(update={"lead_term": title})
    for term, known in zip(terms, texts, strict=True):
        marked = {mark.code for mark in wide if meet(mark, term.quote)}
        if (best := next((known[code] for code in known if code in marked), None)) is not None:
            yield term.model_copy(update={"lead_term": best})


def _named_by_marks(
    note: Note, marks: Sequence[Mark], sentences: Sequence[Sentence], context: Context
) -> Iterator[Term]:
    """The marks that are shorter than their sentences, by the text of the code closest to them."""
    short = [
        (mark, sentence)
        for mark in marks
        for sentence in sentences
        if _within(mark, sentence) and not _covers(mark, sentence)
    ]
    words = [" ".join(note.text[mark.start : mark.end].lower().split()) for mark, _ in short]
    found = search([expand(one) for one in words], context)
    for (mark, sentence), near in zip(short, found, strict=True):
        codes = reported_codes(near, context)
        right = (one.matched for one, code in zip(near, codes, strict=True) if code == mark.code)
        yield Term(
            quote=note.span(mark.start, mark.end),
            sentence=note.span(sentence.start, sentence.end),
            lead_term=next(right, context.system[mark.code].title),
            status=sentence.mention(mark.start, mark.end).status,
        )


def _questions(
    example: Example,
    marks: Sequence[Mark],
    terms: Sequence[Term],
    found: Sequence[Sequence[Candidate]],
    context: Context,
    unseen: Collection[str],
) -> tuple[list[Question], list[Question]]:
    """The candidates marked in their term's sentence, and those that the note has nowhere."""
    gold = gold_codes(example, context)
    right: list[Question] = []
    wrong: list[Question] = []
    for term, near in zip(terms, found, strict=True):
        if key(term.sentence.text) in unseen:
            continue
        here = {mark.code for mark in marks if meet(mark, term.sentence)}
        codes = reported_codes(near, context)
        meant = next((code for code in codes if code in here), None)
        for candidate, code in zip(near, codes, strict=True):
            if code in gold and code not in here:
                continue  # the note means it elsewhere, and perhaps here
            asked = Question(
                document=example.id,
                messages=tuple(question(term, candidate, context)),
                thought=_understood(term, code if code in here else meant, context),
                reply="yes" if code in here else "no",
                texts=texts(term, candidate),
            )
            (right if code in here else wrong).append(asked)
    return right, wrong


def reported_codes(candidates: Sequence[Candidate], context: Context) -> list[str]:
    """The codes of candidates, named as marks name theirs: a prior's may be categories."""
    return [context.system.reported(one.code) for one in candidates]


def _quoted(term: Term) -> Quoted | None:
    """The term as a reply gives it; None for one that a reply has no room for."""
    quote = " ".join(term.quote.text.split())
    for lead_term in (term.lead_term, quote):
        with suppress(ValidationError):
            return Quoted(quote=quote, lead_term=lead_term, status=term.status)
    return None


def _written(terms: Sequence[Quoted]) -> str:
    most = Reply.model_json_schema()["properties"]["terms"]["maxItems"]
    return json.dumps(Reply(terms=[*terms[:most]]).model_dump(), ensure_ascii=False)


def _summed_up(terms: Sequence[Quoted]) -> str:
    """What comes to mind before analyze's reply: what is named, and what it is looked up as."""
    return "; ".join(f"{one.quote}: {one.lead_term}" for one in terms) or "nothing is named"


def _understood(term: Term, code: str | None, context: Context) -> str:
    """What comes to mind before verify's reply: what the term means, whatever is asked about it.

    It leaves the comparison to the reply, whose probability would say nothing after a verdict.
    """
    means = "no code" if code is None else context.system[code].title
    return f"{term.quote.text} means {means}"


def meet(mark: Mark, span: Span) -> bool:
    """Whether the two overlap."""
    return mark.start < span.end and span.start < mark.end


def _covers(mark: Mark, sentence: Sentence) -> bool:
    return mark.start <= sentence.start and sentence.end <= mark.end


def _within(mark: Mark, sentence: Sentence) -> bool:
    return sentence.start <= mark.start and mark.end <= sentence.end


# --- how good a reply is ----------------------------------------------------------------------


class Heard(NamedTuple):
    """What inference reads in a reply."""

    usable: bool
    quotes: int = 0  # given, in the passage or not
    terms: Mapping[Span, str] = MappingProxyType({})  # by their places, with their lead terms


def hear(item: Item, raw: str) -> Heard:
    """Read a reply; one that cannot be read is heard as such."""
    if isinstance(item, Question):
        return Heard(language.strip_thinking(raw) in ANSWERS)
    try:
        quoted = language.Reply.parse(raw, Reply).value.terms
    except ReplyError:
        return Heard(False)
    whole = item.passage.span(0, len(item.passage.text))
    places = [(find(item.passage, whole, one.quote), one.lead_term) for one in quoted]
    return Heard(True, len(quoted), {place: said for place, said in places if place is not None})


class Judge:
    """Rewards of replies, each from 0 to 1, in the form that TRL calls.

    Of a batch, `completions` are the replies as one message each, and `item` says which of the
    items each is a reply to.
    """

    def __init__(self, items: Sequence[Item], context: Context) -> None:
        """Take the items, and what locate needs."""
        self.items, self._context = items, context

    def format(self, completions: Completions, item: Sequence[int], **_: Any) -> list[float]:
        """Whether inference can read the reply."""
        return [float(heard.usable) for _, _, heard in self._heard(completions, item)]

    def verbatim(self, completions: Completions, item: Sequence[int], **_: Any) -> list[float]:
        """The share of its quotes that the passage says, if it can be read."""
        return [
            heard.usable * rewards.share(len(heard.terms), heard.quotes)
            for _, _, heard in self._heard(completions, item)
        ]

    def correct(self, completions: Completions, item: Sequence[int], **_: Any) -> list[float]:
        """Whether verify's answer is right; how well what analyze's terms lead to agrees with gold.

        A term leads to the candidates that locate finds for it.
        """
        heard = self._heard(completions, item)
        queries = sorted({said for _, _, one in heard for said in one.terms.values()})
        found = zip(queries, search(queries, self._context), strict=True)
        leads = {said: reported_codes(near, self._context) for said, near in found}
        return [
            float(language.strip_thinking(raw) == language.strip_thinking(asked.reply))
            if isinstance(asked, Question)
            else one.usable
            * rewards.agreement(
                [leads[said] for said in one.terms.values()], {mark.code for mark in asked.marks}
            )
            for asked, raw, one in heard
        ]

    def _heard(
        self, completions: Completions, item: Sequence[int]
    ) -> list[tuple[Item, str, Heard]]:
        replies = [
            (self.items[place], "".join(turn["content"] for turn in turns))
            for place, turns in zip(item, completions, strict=True)
        ]
        return [(asked, raw, hear(asked, raw)) for asked, raw in replies]


async def answers(items: Sequence[Item], model: LanguageModel) -> list[str]:
    """What a model replies to each item, however bad."""
    chosen = iter(await model.choose(_asked(items, Question), ANSWERS))
    written = iter(await model.chat(_asked(items, Window), Reply))
    return [
        _likelier(next(chosen)) if isinstance(one, Question) else next(written).raw for one in items
    ]


async def mistakes(
    places: Sequence[int], judge: Judge, model: LanguageModel
) -> list[Preference | None]:
    """The right reply to items of the judge and the model's own; None where that is as good."""
    items = [judge.items[place] for place in places]
    own = await answers(items, model)
    right, said = (
        judge.correct([[{"content": one}] for one in replies], places)
        for replies in ([item.reply for item in items], own)
    )
    # A choice is made after a thought, which `choose` keeps to itself.
    thoughts = iter(
        await model.think(_asked(items, Question)) if isinstance(model, LocalModel) else []
    )
    before = [next(thoughts, "") if isinstance(item, Question) else "" for item in items]
    return [
        Preference(messages=item.messages, reply=item.reply, rejected=thought + reply)
        if score < best
        else None
        for item, thought, reply, score, best in zip(items, before, own, said, right, strict=True)
    ]


async def outcomes(items: Sequence[Item], model: LanguageModel) -> list[Heard | float]:
    """What inference gets of a model: for windows terms, for questions how probable yes is."""
    chosen = iter(await model.choose(_asked(items, Question), ANSWERS))
    written = iter(await model.chat(_asked(items, Window), Reply))
    return [
        _probability_of_yes(next(chosen))
        if isinstance(one, Question)
        else hear(one, next(written).raw)
        for one in items
    ]


def _asked(items: Iterable[Item], kind: type[Item]) -> list[tuple[Message, ...]]:
    return [one.messages for one in items if isinstance(one, kind)]


def _likelier(shares: Sequence[float] | ReplyError) -> str:
    """The answer that a model would give, or what it replied instead."""
    return shares.raw if isinstance(shares, ReplyError) else ANSWERS[shares.index(max(shares))]


def _probability_of_yes(shares: Sequence[float] | ReplyError) -> float:
    """As inference has it: where the model gives no verdict, nothing is supported."""
    return 0.0 if isinstance(shares, ReplyError) else shares[0]


async def score(items: Sequence[Item], model: LanguageModel) -> dict[str, float]:
    """How well a model does each task: see `scores`."""
    return scores(items, await outcomes(items, model))


def scores(items: Sequence[Item], got: Sequence[Heard | float]) -> dict[str, float]:
    """How good outcomes are by task, and `score`, the mean of analyze's F1 and verify's precision.

    `analyze_recall` is the share of gold codes that some term touches the evidence for, and
    `analyze_precision` the share of terms that touch any; an invented quote touches none.
    `verify_…` rank questions by the probability of yes, with as many wrong candidates for a right
    one as were drawn. Raises InputError where verify's questions have all the same answer.
    """
    pairs = list(zip(items, got, strict=True))
    heard = [
        (one, said) for one, said in pairs if isinstance(one, Window) and isinstance(said, Heard)
    ]
    judged = [
        (one.reply == "yes", said)
        for one, said in pairs
        if isinstance(one, Question) and isinstance(said, float)
    ]
    by_task: dict[str, float] = {}
    chosen: list[float] = []
    if heard:
        by_task |= _of_windows(heard)
        chosen.append(by_task["analyze_f1"])
    if judged:
        by_task |= _of_questions(judged)
        chosen.append(by_task["verify_average_precision"])
    return {"score": sum(chosen) / len(chosen), **by_task}


def _of_windows(heard: Sequence[tuple[Window, Heard]]) -> dict[str, float]:
    right = touched = known = 0
    for window, one in heard:
        right += sum(any(meet(mark, place) for mark in window.marks) for place in one.terms)
        known += len({mark.code for mark in window.marks})
        touched += len(
            {mark.code for mark in window.marks if any(meet(mark, place) for place in one.terms)}
        )
    precision = rewards.share(right, sum(one.quotes for _, one in heard))
    recall = rewards.share(touched, known)
    return {
        "analyze_f1": harmonic_mean([precision, recall]),
        "analyze_precision": precision,
        "analyze_recall": recall,
        "analyze_usable": rewards.share(sum(one.usable for _, one in heard), len(heard)),
    }


def _of_questions(judged: Sequence[tuple[bool, float]]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    right, probabilities = zip(*judged, strict=True)
    if len(set(right)) == 1:
        answer = "yes" if right[0] else "no"
        raise InputError(f"all questions held out have the answer {answer}: hold out more")
    return {
        "verify_average_precision": float(average_precision_score(right, probabilities)),
        "verify_roc_auc": float(roc_auc_score(right, probabilities)),
    }


def _load(settings: Settings, system: CodeSystem) -> Context:
    return Context.load(settings, open_index(settings, system))


def kept(file: Path, shape: TypeAdapter[ShapeT], make: Callable[[], list[ShapeT]]) -> list[ShapeT]:
    """The lines of a file, which is written first if it is not there."""
    if not file.exists():
        lines = (shape.dump_json(one).decode() + "\n" for one in make())
        runs.write(file, "".join(lines))
    return [
        shape.validate_json(line) for line in file.read_bytes().decode("utf-8").split("\n")[:-1]
    ]
