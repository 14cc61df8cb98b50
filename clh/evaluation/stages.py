"""What each stage made of a note, and where the gold codes were lost on the way."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field, ValidationError

from clh.corpora.example import Example
from clh.errors import InputError
from clh.evaluation import metrics
from clh.evaluation.metrics import Scored
from clh.icd.tabular import CodeSystem
from clh.schema import AGENTS, CodedNote, Shape, Status

CUTOFFS = (10, 50, 100, 200)  # ranks at which the literature on code retrieval reads recall

Miss = Literal[
    "not billable in this release",
    "not found by analyze",
    "not retrieved by locate",
    "rejected by verify",
    "dropped by assign",
]
Extra = Literal["parent instead of child", "child instead of parent", "wrong sibling", "extra"]
MISSES: tuple[Miss, ...] = get_args(Miss)
EXTRAS: tuple[Extra, ...] = get_args(Extra)


class Exchanged(Shape):
    """One question to a model and its answer, by their fingerprints."""

    prompt_sha256: str
    reply_sha256: str


class TermPlace(Shape):
    """Where a term stands in its note; experiments' files hold no text of it."""

    start: int
    end: int
    status: Status
    is_sentence: bool


class Steps(Shape):
    """What each stage made of one note; scores are the best of all terms, best code first."""

    note_id: str
    run_id: str
    note_sha256: str
    git: str
    exchanges: tuple[Exchanged, ...] = ()
    terms: tuple[TermPlace, ...] = ()
    retrieved: dict[str, float] = Field(default={}, description="code -> fused score")
    retrieved_without_prior: dict[str, float] = Field(
        default={}, description="the same without the prior"
    )
    verified: dict[str, float] = Field(default={}, description="code -> probability")
    code_probabilities: dict[str, float] = Field(
        default={},
        description="code -> probability by all verdicts together, where assign decides by that",
    )

    @property
    def probabilities(self) -> dict[str, float]:
        """The probabilities that the threshold of assign is compared with."""
        return self.code_probabilities or self.verified


class PredictedCode(BaseModel):
    """What a line of predictions.jsonl must have for a code; it may have more."""

    code: str
    confidence: float


class Prediction(BaseModel):
    """What a line of predictions.jsonl must have for a note, whoever wrote it."""

    note_id: str
    codes: tuple[PredictedCode, ...]
    gold: tuple[str, ...]


class CodedExample(CodedNote):
    """A line of predictions.jsonl: a coded note and its gold codes."""

    gold: tuple[str, ...]


class Outcome(NamedTuple):
    """A note's gold, what the stages made of it, and the answer."""

    example: Example
    steps: Steps
    coded: CodedExample


class FalseNegative(NamedTuple):
    """A gold code that was not assigned, and why."""

    note_id: str
    code: str
    why: Miss


class FalsePositive(NamedTuple):
    """An assigned code that is not gold, and how it relates to the gold codes."""

    note_id: str
    code: str
    what: Extra


def score_notes(coded: Iterable[CodedExample]) -> list[Scored]:
    """The coded examples in the form that the scorer takes."""
    return [
        Scored(
            id=one.note_id,
            gold=frozenset(one.gold),
            predicted={each.code: each.confidence for each in one.codes},
        )
        for one in coded
    ]


def read_predictions(file: Path, system: CodeSystem) -> list[Scored]:
    """The notes of a predictions.jsonl.

    Raises InputError, with the row, for a line that is not a prediction, a predicted code that the
    release does not have, and a note that comes twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    notes: dict[str, Scored] = {}
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            note = Prediction.model_validate_json(line)
            predicted = {system.normalize(one.code): one.confidence for one in note.codes}
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{file}, row {row}, {place}: {first['msg']}") from error
        except InputError as error:
            raise InputError(f"{file}, row {row}: {error}") from error
        if note.note_id in notes:
            raise InputError(f"{file}, row {row}: note {note.note_id} occurs twice")
        notes[note.note_id] = Scored(note.note_id, frozenset(note.gold), predicted)
    if not notes:
        raise InputError(f"{file} holds no predictions")
    return list(notes.values())


def analyze_scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The number of terms, and the share of gold codes whose evidence one of them touches.

    Only codes with evidence count; where the corpus marks whole sentences, the share says how often
    analyze found something in the right sentence. None in a corpus without evidence.
    """
    known = touched = 0
    for example, steps, _ in outcomes:
        evidenced = {one.code for one in example.evidence}
        known += len(evidenced)
        touched += len(evidenced & _touched(example, steps.terms))
    return {
        "terms_per_note": sum(len(steps.terms) for _, steps, _ in outcomes) / len(outcomes),
        "gold_with_evidence": known,
        "evidence_recall": touched / known if known else None,
    }


def locate_scores(outcomes: Sequence[Outcome], system: CodeSystem) -> dict[str, Any]:
    """Recall of the codes that locate proposes for a note, ranked by their best similarity.

    Locate searches codes without their 7th character, so gold codes are held against it without.
    `no_prior` is what it would propose if it knew nothing of the corpus's use of codes.
    """
    ranked, without_prior = rank_retrieved(outcomes, system)

    def recall(notes: list[Scored]) -> dict[str, float]:
        scores = metrics.rank_scores(notes, CUTOFFS)
        return {f"recall@{k}": scores[f"recall@{k}"] for k in CUTOFFS}

    return {
        "candidates_per_note": sum(len(one.predicted) for one in ranked) / len(ranked),
        "recall": metrics.set_scores(ranked)["micro_recall"],
        **recall(ranked),
        "no_prior": recall(without_prior),
    }


def rank_retrieved(
    outcomes: Iterable[Outcome], system: CodeSystem
) -> tuple[list[Scored], list[Scored]]:
    """What locate proposes for each note, and what it would have proposed without a prior."""
    notes = [(one.example, one.steps) for one in outcomes]
    return (
        [_rank(example, steps.retrieved, system) for example, steps in notes],
        [_rank(example, steps.retrieved_without_prior, system) for example, steps in notes],
    )


def verify_scores(
    outcomes: Sequence[Outcome], system: CodeSystem, threshold: float
) -> dict[str, Any]:
    """How well verify's probabilities tell a note's codes from the other candidates.

    `recall` is of the gold codes that pass the threshold; 7th characters as in `locate_scores`.
    """
    ranked = [_rank(one.example, one.steps.verified, system) for one in outcomes]
    return _ranking_scores(ranked, threshold)


def _ranking_scores(ranked: Sequence[Scored], threshold: float) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

    passed = [
        Scored(one.id, one.gold, {c: p for c, p in one.predicted.items() if p >= threshold})
        for one in ranked
    ]
    probabilities, labels = _flatten(ranked)
    both = 0 < sum(labels) < len(labels)
    bins = metrics.calibration(probabilities, labels)
    scores = metrics.rank_scores(ranked, CUTOFFS)
    return {
        "candidates": len(labels),
        "threshold": threshold,
        "recall": metrics.set_scores(passed)["micro_recall"],
        "roc_auc": float(roc_auc_score(labels, probabilities)) if both else None,
        "average_precision": float(average_precision_score(labels, probabilities))
        if both
        else None,
        "brier": float(brier_score_loss(labels, probabilities)) if both else None,
        "calibration_error": metrics.expected_calibration_error(bins),
        "map": scores["map"],
        "r_precision": scores["r_precision"],
        **{f"recall@{k}": scores[f"recall@{k}"] for k in CUTOFFS},
    }


def label_probabilities(
    outcomes: Iterable[Outcome], system: CodeSystem
) -> tuple[list[float], list[bool]]:
    """The probabilities that assign goes by, and whether each was for a gold code of its note."""
    return _flatten(rank_codes(outcomes, system))


def rank_codes(outcomes: Iterable[Outcome], system: CodeSystem) -> list[Scored]:
    """All codes that assign chooses from, with the probabilities that it goes by."""
    return [_rank(one.example, one.steps.probabilities, system) for one in outcomes]


def _flatten(notes: Iterable[Scored]) -> tuple[list[float], list[bool]]:
    probabilities: list[float] = []
    labels: list[bool] = []
    for note in notes:
        probabilities += note.predicted.values()
        labels += [code in note.gold for code in note.predicted]
    return probabilities, labels


def assign_scores(
    outcomes: Sequence[Outcome], system: CodeSystem, threshold: float
) -> dict[str, Any]:
    """The final codes: exact scores, and the same folded and by category.

    `ranking` is of all codes by the probabilities that assign goes by, as `verify_scores`.
    """
    notes = score_notes(coded for _, _, coded in outcomes)
    folded = metrics.folded(notes, system)
    return {
        "codes_per_note": sum(len(one.predicted) for one in notes) / len(notes),
        **metrics.summary(notes, system),
        "ranking": _ranking_scores(rank_codes(outcomes, system), threshold),
        "folded": metrics.set_scores(folded),
        "category": metrics.set_scores(metrics.categories(folded)),
    }


def count_funnel(
    outcomes: Sequence[Outcome], system: CodeSystem, threshold: float
) -> dict[str, int]:
    """How many gold codes are left: of all, after those that no release can give, and by stage."""
    lost = Counter(one.why for one in find_false_negatives(outcomes, system, threshold))
    left = sum(len(one.example.codes) for one in outcomes)
    counts = {"gold": left}
    for stage, why in zip(("billable", *AGENTS), MISSES, strict=True):
        left -= lost[why]
        counts[stage] = left
    return counts


def find_false_negatives(
    outcomes: Iterable[Outcome], system: CodeSystem, threshold: float
) -> list[FalseNegative]:
    """The gold codes that were not assigned, each with the first stage that lost it."""
    missed = []
    for outcome in outcomes:
        assigned = {code.code for code in outcome.coded.codes}
        touched = _touched(outcome.example, outcome.steps.terms)
        missed += [
            FalseNegative(
                outcome.example.id, code, _why_missed(code, outcome, touched, system, threshold)
            )
            for code in outcome.example.codes
            if code not in assigned
        ]
    return missed


def find_false_positives(outcomes: Iterable[Outcome], system: CodeSystem) -> list[FalsePositive]:
    """The assigned codes that are not gold, each with its nearest kin among the gold codes."""
    return [
        FalsePositive(
            one.example.id, assigned.code, _what_extra(assigned.code, one.example, system)
        )
        for one in outcomes
        for assigned in one.coded.codes
        if assigned.code not in one.example.codes
    ]


def _why_missed(
    code: str, outcome: Outcome, touched: set[str], system: CodeSystem, threshold: float
) -> Miss:
    example, steps, _ = outcome
    stem = system.stem_or_self(code)
    evidenced = {one.code for one in example.evidence}
    if code not in system or not system.billable(code):
        return "not billable in this release"
    # Given gold verdicts, assign has codes that nothing located, and with their 7th characters.
    probability = max(steps.verified.get(name, 0.0) for name in (stem, code))
    if stem not in steps.retrieved and not probability:
        missed = code in evidenced and code not in touched
        return "not found by analyze" if missed else "not retrieved by locate"
    if not steps.code_probabilities and probability < threshold:
        return "rejected by verify"
    return "dropped by assign"


def _what_extra(code: str, example: Example, system: CodeSystem) -> Extra:
    kin = [one for one in example.codes if one in system and one[:3] == code[:3]]  # one category
    if any(system.vaguer(code, than=one) for one in kin):
        return "parent instead of child"
    if any(system.vaguer(one, than=code) for one in kin):
        return "child instead of parent"
    return "wrong sibling" if kin else "extra"


def _touched(example: Example, terms: Iterable[TermPlace]) -> set[str]:
    """The codes with evidence that some mention overlaps; that all sentences do tells nothing."""
    quotes = [term for term in terms if not term.is_sentence]
    return {
        code
        for code in {one.code for one in example.evidence}
        if any(
            quote.start < span.end and span.start < quote.end
            for span in example.spans(code)
            for quote in quotes
        )
    }


def _rank(example: Example, scores: Mapping[str, float], system: CodeSystem) -> Scored:
    gold = frozenset(system.stem_or_self(code) for code in example.codes)
    return Scored(example.id, gold, dict(scores))
