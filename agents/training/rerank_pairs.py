"""What the cross-encoder learns verify's work from: candidates of a corpus, and which are right."""

import argparse
import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter
from tqdm import tqdm

from agents.context import Context
from agents.training import examples
from agents.verify import rerank_key, score_candidates, select_for_reranking, texts
from clh.config import Settings
from clh.corpora import Example
from clh.evaluation import runs
from clh.icd.tabular import load_tabular
from clh.models.logistic import logit
from clh.retrieval.index import open_index
from clh.schema import Candidate, Shape, Span, Term
from clh.training.priors import recount
from clh.training.reranker import Recipe


class Reading(Shape):
    """What the cross-encoder reads of a candidate, and whether it is right."""

    texts: tuple[str, str]
    right: bool


class Considered(Reading):
    """A candidate of a document held out; the cross-encoder would read it if it is `likely`."""

    document: str
    likely: bool
    retrieval: float  # in log-odds
    rank: float


@dataclass(frozen=True)
class Lessons:
    """What a run learns from, what chooses its best epoch, and where it is kept."""

    learned: list[Reading]
    held_out: list[Considered]
    context: Context
    folder: runs.Folder


def prepare(arguments: argparse.Namespace, recipe: Recipe) -> Lessons:
    """The lessons of a run, made once, and its folder; none to learn where `arguments.encoder` did.

    Documents are split as by `examples.prepare`, and candidates found as in inference, but with a
    prior that was counted on other documents. Raises InputError for data that cannot be used.
    """
    settings = Settings.load(recipe.profile, verify={"source": "retrieval"})
    system = load_tabular()
    context = Context.load(settings, open_index(settings, system))
    split = examples.Split.read(arguments, recipe)
    config = {**split.config(context, recipe), "encoder": arguments.encoder}
    folder = runs.Folder(arguments.output, config, ())
    unseen = split.unseen(context.reader)
    rng = random.Random(recipe.seed)  # noqa: S311

    def informed(counted: Sequence[Example]) -> Context:
        prior = settings.locate.prior
        if not prior:
            return context
        counts = recount(prior, counted, context.index, system, context.reader)
        return replace(context, prior=counts)

    def learn() -> list[Reading]:
        found = []
        with tqdm(total=len(split.learned), unit="document", disable=None) as bar:
            for fold in range(recipe.folds):
                others = [one for i, one in enumerate(split.learned) if i % recipe.folds != fold]
                knowing = informed(others)
                for example in split.learned[fold :: recipe.folds]:
                    found += readings(example, knowing, recipe.negatives, rng, unseen)
                    bar.update()
        return found

    def hold_out() -> list[Considered]:
        knowing = informed(split.learned)
        return [
            one
            for example in tqdm(split.held_out, unit="document", disable=None)
            for one in considered(example, knowing)
        ]

    file = folder.path / "learned.jsonl"
    return Lessons(
        learned=[] if arguments.encoder else examples.kept(file, TypeAdapter(Reading), learn),
        held_out=examples.kept(folder.path / "held_out.jsonl", TypeAdapter(Considered), hold_out),
        context=context,
        folder=folder,
    )


def readings(
    example: Example,
    context: Context,
    negatives: float,
    rng: random.Random,
    unseen: Collection[str] = (),
) -> list[Reading]:
    """What is learned from a document.

    Right are the codes marked in a sentence, each at the term there that it is best for; wrong,
    `negatives` for each right one, those that the cross-encoder would read and the note has
    nowhere. Sentences that are `unseen` are left out. Raises InputError as `examples.located`.
    """
    terms, found = examples.located(example, context)
    marks = examples.evidence(example, context)
    gold = examples.gold_codes(example, context)
    best: dict[tuple[str, Span], tuple[Term, Candidate]] = {}
    for term, near in zip(terms, found, strict=True):
        here = {mark.code for mark in marks if examples.meet(mark, term.sentence)}
        for one, code in zip(near, examples.reported_codes(near, context), strict=True):
            known = best.get((code, term.sentence))
            if code in here and (known is None or rerank_key(term, one) > rerank_key(*known)):
                best[code, term.sentence] = (term, one)
    others = [
        (terms[position], one)
        for position, one in select_for_reranking(terms, found, context.settings.verify.codes)
        if context.system.reported(one.code) not in gold
    ]
    drawn = rng.sample(others, min(round(negatives * len(best)), len(others)))
    return [
        Reading(texts=texts(term, one), right=right)
        for pairs, right in ((best.values(), True), (drawn, False))
        for term, one in pairs
        if examples.key(term.sentence.text) not in unseen
    ]


def considered(example: Example, context: Context) -> list[Considered]:
    """All candidates of a document, each at its best term; right are the codes that it has.

    Raises InputError as `examples.located`.
    """
    terms, found = examples.located(example, context)
    gold = examples.gold_codes(example, context)
    retrieval: dict[str, float] = {}
    for verdict in score_candidates(terms, found, context):
        odds = logit(verdict.probability)
        retrieval[verdict.code] = max(odds, retrieval.get(verdict.code, odds))
    ranks: dict[str, float] = {}
    for one in itertools.chain.from_iterable(found):
        ranks[one.code] = max(one.fused_score, ranks.get(one.code, one.fused_score))
    most = context.settings.verify.codes
    return [
        Considered(
            document=example.id,
            texts=texts(terms[position], one),
            right=context.system.reported(one.code) in gold,
            likely=place < most,
            retrieval=retrieval[one.code],
            rank=ranks[one.code],
        )
        for place, (position, one) in enumerate(select_for_reranking(terms, found, len(retrieval)))
    ]
