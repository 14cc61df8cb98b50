"""Labelled pairs for the reranker: a mention in its sentence with a code's text, right or wrong."""

import argparse
import asyncio
import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from tqdm import tqdm

from agents.node import Trace
from agents.pipeline import Pipeline
from agents.training.evidence import (
    evidence_marks,
    gold_codes,
    locate_document,
    overlaps,
    reported_codes,
)
from agents.training.split import DocumentSplit, sentence_key
from agents.training.training_set import cached_jsonl, run_config
from agents.verify.reranking import rerank_input, rerank_key, select_for_reranking
from clh.config import Settings
from clh.corpora import Example
from clh.evaluation.run_folder import RunFolder
from clh.models.logistic import logit
from clh.schema import Candidate, Shape, Span, Term
from clh.training.priors import recount
from clh.training.reranker import RerankerRecipe


class RerankPair(Shape):
    """What the reranker reads of a candidate, and whether the candidate is right."""

    texts: tuple[str, str]
    right: bool


class HeldOutPair(RerankPair):
    """A candidate of a held-out document, with all else that is known of it."""

    document: str
    code: str  # as the document's gold codes are named
    reranked: bool  # whether it is among those that the reranker reads
    retrieval: float  # the log-odds of the retrieval's verdict
    fused_score: float  # locate's


@dataclass(frozen=True)
class RerankData:
    """The pairs that a reranker is trained on, and those that choose its best epoch."""

    train: list[RerankPair]
    held_out: list[HeldOutPair]
    gold: dict[str, frozenset[str]]  # the codes of each held-out document
    pipeline: Pipeline
    folder: RunFolder


def load_rerank_data(arguments: argparse.Namespace, recipe: RerankerRecipe) -> RerankData:
    """The pairs of a run, made once, and its folder; none to train on with `arguments.encoder`.

    Documents are split as for language models, and candidates found as in inference, but with a
    prior that was counted on other documents. Raises InputError for data that cannot be used.
    """
    settings = Settings.load(recipe.profile, verify={"source": "retrieval"})
    pipeline = Pipeline.load(settings)
    split = DocumentSplit.read(arguments, recipe)
    config = {**run_config(split, pipeline, recipe), "encoder": arguments.encoder}
    folder = RunFolder(arguments.output, config, ())

    def make_held_out() -> list[HeldOutPair]:
        counted = with_prior_of(split.train, pipeline)
        return [
            pair
            for document in tqdm(split.held_out, unit="document", disable=None)
            for pair in held_out_pairs(document, counted)
        ]

    return RerankData(
        train=[]
        if arguments.encoder
        else cached_jsonl(
            folder.path / "train.jsonl",
            TypeAdapter(RerankPair),
            lambda: train_pairs_in_folds(split, pipeline, recipe),
        ),
        held_out=cached_jsonl(
            folder.path / "held_out.jsonl", TypeAdapter(HeldOutPair), make_held_out
        ),
        gold={document.id: gold_codes(document, pipeline.system) for document in split.held_out},
        pipeline=pipeline,
        folder=folder,
    )


def with_prior_of(documents: Sequence[Example], pipeline: Pipeline) -> Pipeline:
    """The pipeline with its prior, if it has one, counted on these documents."""
    prior = pipeline.settings.locate.prior
    if not prior:
        return pipeline
    counted = recount(prior, documents, pipeline.index, pipeline.system, pipeline.reader)
    return pipeline.rebuild(pipeline.settings, counted)


def train_pairs_in_folds(
    split: DocumentSplit, pipeline: Pipeline, recipe: RerankerRecipe
) -> list[RerankPair]:
    """The pairs of the training documents, found with a prior of the other folds."""
    unseen = split.unseen_sentences(pipeline.reader)
    rng = random.Random(recipe.seed)  # noqa: S311
    pairs = []
    with tqdm(total=len(split.train), unit="document", disable=None) as bar:
        for fold in range(recipe.folds):
            others = [
                document for i, document in enumerate(split.train) if i % recipe.folds != fold
            ]
            counted = with_prior_of(others, pipeline)
            for document in split.train[fold :: recipe.folds]:
                pairs += train_pairs(document, counted, recipe.negatives, rng, unseen)
                bar.update()
    return pairs


def train_pairs(
    document: Example,
    pipeline: Pipeline,
    negatives: float,
    rng: random.Random,
    unseen: Collection[str] = (),
) -> list[RerankPair]:
    """The pairs of a document that a reranker is trained on.

    Right are the codes marked in a sentence, each at the term there that it is best for; wrong,
    `negatives` for each right one, those that the reranker would read and the note has nowhere.
    Sentences whose key is `unseen` are left out. Raises InputError as `locate_document`.
    """
    terms, candidates = locate_document(document, pipeline)
    marks = evidence_marks(document, pipeline.system)
    gold = gold_codes(document, pipeline.system)
    best: dict[tuple[str, Span], tuple[Term, Candidate]] = {}
    for term, found in zip(terms, candidates, strict=True):
        here = {mark.code for mark in marks if overlaps(mark, term.sentence)}
        for candidate, code in zip(found, reported_codes(found, pipeline.system), strict=True):
            known = best.get((code, term.sentence))
            if code in here and (known is None or rerank_key(term, candidate) > rerank_key(*known)):
                best[code, term.sentence] = (term, candidate)
    reranked = select_for_reranking(terms, candidates, pipeline.settings.verify.reranking.top_k)
    wrong = [
        (terms[position], candidate)
        for position, candidate in reranked
        if pipeline.system.reported(candidate.code) not in gold
    ]
    drawn = rng.sample(wrong, min(round(negatives * len(best)), len(wrong)))
    return [
        RerankPair(texts=rerank_input(term, candidate), right=right)
        for pairs, right in ((best.values(), True), (drawn, False))
        for term, candidate in pairs
        if sentence_key(term.sentence.text) not in unseen
    ]


def held_out_pairs(document: Example, pipeline: Pipeline) -> list[HeldOutPair]:
    """All candidates of a document, each at its best term; right are the codes that it has.

    Raises InputError as `locate_document`.
    """
    terms, candidates = locate_document(document, pipeline)
    gold = gold_codes(document, pipeline.system)
    retrieval: dict[str, float] = {}
    verdicts, _ = asyncio.run(pipeline.verifier.verify(terms, candidates, Trace()))
    for verdict in verdicts:
        odds = logit(verdict.probability)
        retrieval[verdict.code] = max(odds, retrieval.get(verdict.code, odds))
    scores: dict[str, float] = {}
    for candidate in itertools.chain.from_iterable(candidates):
        score = candidate.fused_score
        scores[candidate.code] = max(score, scores.get(candidate.code, score))
    most = pipeline.settings.verify.reranking.top_k
    return [
        HeldOutPair(
            document=document.id,
            texts=rerank_input(terms[position], candidate),
            code=pipeline.system.reported(candidate.code),
            right=pipeline.system.reported(candidate.code) in gold,
            reranked=place < most,
            retrieval=retrieval[candidate.code],
            fused_score=scores[candidate.code],
        )
        for place, (position, candidate) in enumerate(
            select_for_reranking(terms, candidates, len(retrieval))
        )
    ]
