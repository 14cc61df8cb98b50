"""How well a language model does the agents' tasks on examples."""

from collections.abc import Sequence
from statistics import harmonic_mean

from agents.analyze.llm import Reply
from agents.training.evidence import overlaps
from agents.training.examples import AgentExample, AnalyzeExample, VerifyExample
from agents.training.rewards import ParsedCompletion, parse_completion, ratio
from agents.verify.llm import ANSWERS
from clh.errors import InputError, ReplyError
from clh.models.language import LanguageModel

Prediction = ParsedCompletion | float  # of a window its terms, of a candidate how probable yes is


async def evaluate(examples: Sequence[AgentExample], model: LanguageModel) -> dict[str, float]:
    """The scores of a model on each task: see `score_predictions`."""
    return score_predictions(examples, await predict(examples, model))


async def predict(examples: Sequence[AgentExample], model: LanguageModel) -> list[Prediction]:
    """What inference gets of a model for each example."""
    verify = [example.prompt for example in examples if isinstance(example, VerifyExample)]
    analyze = [example.prompt for example in examples if isinstance(example, AnalyzeExample)]
    probabilities = iter(await model.choose(verify, ANSWERS))
    replies = iter(await model.chat(analyze, Reply))
    return [
        _probability_of_yes(next(probabilities))
        if isinstance(example, VerifyExample)
        else parse_completion("analyze", example.passage.text, next(replies).raw)
        for example in examples
    ]


def score_predictions(
    examples: Sequence[AgentExample], predictions: Sequence[Prediction]
) -> dict[str, float]:
    """Scores by task, and `score`, the mean of analyze's F1 and verify's average precision.

    `analyze_recall` is the share of gold codes whose evidence some term touches, and
    `analyze_precision` the share of terms that touch any; an invented quote touches none.
    `verify_...` rank candidates by the probability of yes, with as many wrong candidates for a
    right one as were drawn. Raises InputError where verify's examples have all the same answer.
    """
    pairs = list(zip(examples, predictions, strict=True))
    analyze = [
        (example, parsed)
        for example, parsed in pairs
        if isinstance(example, AnalyzeExample) and isinstance(parsed, ParsedCompletion)
    ]
    verify = [
        (example.completion == "yes", probability)
        for example, probability in pairs
        if isinstance(example, VerifyExample) and isinstance(probability, float)
    ]
    scores: dict[str, float] = {}
    averaged: list[float] = []
    if analyze:
        scores |= _analyze_scores(analyze)
        averaged.append(scores["analyze_f1"])
    if verify:
        scores |= _verify_scores(verify)
        averaged.append(scores["verify_average_precision"])
    return {"score": sum(averaged) / len(averaged), **scores}


def _probability_of_yes(probabilities: Sequence[float] | ReplyError) -> float:
    """As inference has it: where the model gives no answer, nothing is supported."""
    return 0.0 if isinstance(probabilities, ReplyError) else probabilities[0]


def _analyze_scores(pairs: Sequence[tuple[AnalyzeExample, ParsedCompletion]]) -> dict[str, float]:
    right = touched = known = 0
    for example, parsed in pairs:
        spans = parsed.lead_terms.keys()
        right += sum(any(overlaps(mark, span) for mark in example.marks) for span in spans)
        known += len({mark.code for mark in example.marks})
        touched += len(
            {mark.code for mark in example.marks if any(overlaps(mark, span) for span in spans)}
        )
    precision = ratio(right, sum(parsed.quotes for _, parsed in pairs))
    recall = ratio(touched, known)
    return {
        "analyze_f1": harmonic_mean([precision, recall]),
        "analyze_precision": precision,
        "analyze_recall": recall,
        "analyze_usable": ratio(sum(parsed.usable for _, parsed in pairs), len(pairs)),
    }


def _verify_scores(pairs: Sequence[tuple[bool, float]]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    right, probabilities = zip(*pairs, strict=True)
    if len(set(right)) == 1:
        answer = "yes" if right[0] else "no"
        raise InputError(f"all held-out examples of verify have the answer {answer}: hold out more")
    return {
        "verify_average_precision": float(average_precision_score(right, probabilities)),
        "verify_roc_auc": float(roc_auc_score(right, probabilities)),
    }
