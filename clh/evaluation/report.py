"""The report of an experiment: one HTML page that stands alone, and a table for the terminal."""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from clh.evaluation import metrics, stages
from clh.evaluation.stages import Outcome
from clh.highlight import highlight
from clh.icd.tabular import CodeSystem
from clh.schema import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORST = 20  # codes in a table of the most frequent errors


class Score(NamedTuple):
    """A figure and its 95% interval in words, "" if it has none."""

    name: str
    value: float | None
    interval: str = ""


def page(
    result: Mapping[str, Any],
    config: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    system: CodeSystem,
    worked_notes: int,
) -> str:
    """The report as one HTML page, which needs no other file, network or script.

    `result` is what `metrics.json` holds; the page leaves out what it lacks. `worked_notes` notes
    are shown in full, spread evenly from the lowest to the highest F1.
    """
    loader = PackageLoader("clh.evaluation", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True)
    environment.filters["number"] = _number
    threshold = result["threshold"]
    return environment.get_template("report.jinja").render(
        result=result,
        config=config,
        system=system,
        date=datetime.now(UTC).date(),
        models=dict(chain.from_iterable(one.coded.models.items() for one in outcomes)),
        scores=_scores(result),
        funnel=_funnel(result["funnel"]) if "funnel" in result else [],
        charts=_charts(result, outcomes, system, threshold) if "verify" in result["stages"] else [],
        groups={
            name: [tuple(one.values()) for one in result.get(name) or ()]
            for name in ("chapters", "bands")
        },
        bands=metrics.BANDS,
        errors=_errors(outcomes, system, threshold, worked_notes) if "misses" in result else None,
    )


def show(result: Mapping[str, Any]) -> None:
    """Print the scores of each stage, the speed and the code space."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("Stage", "Metric", "Value", "95% interval"):
        table.add_column(column, justify="right" if column == "Value" else "left")
    for group, scores in _scores(result).items():
        table.add_section()
        for name, value, interval in scores:
            first = group if name == scores[0].name else ""
            table.add_row(first, name, _number(value), interval)
    console = Console(markup=False, highlight=False)
    console.print(f"{result['dataset']} {result['split']}, {_number(result['n_notes'])} notes")
    console.print(table)
    console.print(f"code space: all {_number(result['code_space'])} codes and categories")


def _scores(result: Mapping[str, Any]) -> dict[str, list[Score]]:
    """The figures of each stage, then those of its variants ("assign, folded"), then the speed.

    The intervals are those of the last stage.
    """
    groups: dict[str, list[Score]] = {}
    for stage, scores in result["stages"].items():
        intervals = result["ci95"] if stage == [*result["stages"]][-1] else {}
        groups[stage] = []
        for name, value in scores.items():
            if isinstance(value, Mapping):
                groups[f"{stage}, {name}"] = [Score(*one) for one in value.items()]
            else:
                groups[stage].append(Score(name, value, _interval(intervals.get(name))))
    return groups | {"speed": [Score(*one) for one in result["speed"].items()]}


def _funnel(left: Mapping[str, int]) -> list[tuple[str, int, float, int]]:
    """How many gold codes are left after each stage, their share of all, and how many it lost."""
    before = [left["gold"], *left.values()]
    return [
        (stage, count, count / max(left["gold"], 1), earlier - count)
        for (stage, count), earlier in zip(left.items(), before, strict=False)
    ]


# --- errors --------------------------------------------------------------------------------


def _errors(
    outcomes: Sequence[Outcome], system: CodeSystem, threshold: float, worked_notes: int
) -> dict[str, Any]:
    """The codes that are wrong most often, and notes to read."""
    lost = stages.find_false_negatives(outcomes, system, threshold)
    invented = stages.find_false_positives(outcomes, system)
    gold = Counter(code for one in outcomes for code in one.example.codes)
    predicted = Counter(assigned.code for one in outcomes for assigned in one.coded.codes)
    errors = {(one.note_id, one.code): f"missed: {one.why}" for one in lost}
    errors |= {(one.note_id, one.code): one.what for one in invented}
    return {
        "missed": _worst(((one.code, one.why) for one in lost), gold, system),
        "invented": _worst(((one.code, one.what) for one in invented), predicted, system),
        "worked": [_worked(one, f1, errors, system) for f1, one in _spread(outcomes, worked_notes)],
    }


def _worst(
    errors: Iterable[tuple[str, str]], times: Mapping[str, int], system: CodeSystem
) -> list[tuple[str, str, int, int, str]]:
    """The codes with most errors: code, title, times gold or predicted, errors, main reason."""
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for code, reason in errors:
        reasons[code][reason] += 1
    most = sorted(reasons, key=lambda code: (-reasons[code].total(), times[code], code))[:_WORST]
    return [
        (code, _title(code, system), times[code], why.total(), why.most_common(1)[0][0])
        for code, why in ((code, reasons[code]) for code in most)
    ]


def _spread(outcomes: Sequence[Outcome], wanted: int) -> list[tuple[float, Outcome]]:
    """Notes at even distances in the order of their F1, from the lowest to the highest."""
    notes = stages.score_notes(one.coded for one in outcomes)
    f1 = [metrics.set_scores([note])["micro_f1"] for note in notes]
    ordered = sorted(zip(f1, outcomes, strict=True), key=lambda pair: (pair[0], pair[1].example.id))
    wanted = min(wanted, len(ordered))
    return [ordered[one * (len(ordered) - 1) // max(wanted - 1, 1)] for one in range(wanted)]


def _worked(
    outcome: Outcome, f1: float, errors: Mapping[tuple[str, str], str], system: CodeSystem
) -> dict[str, Any]:
    """A note to read: its text in pieces; its codes, right ones first, then missed, then extra."""
    example = outcome.example
    assigned = {one.code: one for one in outcome.coded.codes}
    gold = {code: example.spans(code) for code in example.codes}
    predicted = {code: one.evidence for code, one in assigned.items()}
    rows = [
        {
            "code": code,
            "title": _title(code, system),
            "gold": _quotes(gold[code]) if code in gold else None,
            "predicted": _quotes(predicted[code]) if code in predicted else None,
            "confidence": assigned[code].confidence if code in assigned else None,
            "error": errors.get((example.id, code)),
        }
        for code in dict.fromkeys((*gold, *predicted))
    ]
    rows.sort(key=lambda row: row["error"] is not None)
    pieces = highlight(example.note.text, gold, predicted)
    return {"id": example.id, "f1": f1, "pieces": pieces, "rows": rows}


def _quotes(spans: Iterable[Span]) -> list[str]:
    return list(dict.fromkeys(" ".join(span.text.split()) for span in spans))


def _title(code: str, system: CodeSystem) -> str:
    return system[code].title if code in system else "not in this release"


# --- charts --------------------------------------------------------------------------------

# Charts are drawn in these colours, and take on those of the page, be it light or dark.
_INK, _MUTED, _ACCENT = "#010101", "#020202", "#030303"


def _charts(
    result: Mapping[str, Any], outcomes: Sequence[Outcome], system: CodeSystem, threshold: float
) -> list[tuple[Markup, str]]:
    """Precision and recall, and calibration, of the probabilities that assign goes by."""
    probabilities, labels = stages.label_probabilities(outcomes, system)
    if not probabilities:
        return []
    gold = sum(len(one.example.codes) for one in outcomes)
    curve = metrics.precision_recall(probabilities, labels, gold)
    bins = metrics.calibration(probabilities, labels)
    final = result["stages"].get("assign")

    def draw_curve(axes: "Axes") -> None:
        axes.set(xlabel="recall of all gold codes", ylabel="precision")
        axes.plot(curve.recall, curve.precision, color=_ACCENT, label="all candidates")
        at = curve.threshold.searchsorted(threshold)
        if at < len(curve.threshold):
            point = curve.recall[at], curve.precision[at]
            axes.plot(*point, "o", color=_ACCENT, label=f"probability ≥ {threshold:g}")
        if final is not None:
            point = final["micro_recall"], final["micro_precision"]
            axes.plot(*point, "D", color=_INK, label="final codes")
        axes.legend(frameon=False, loc="upper right")

    def draw_bins(axes: "Axes") -> None:
        axes.set(xlabel="mean probability", ylabel="share right")
        axes.plot([0, 1], [0, 1], "--", color=_MUTED, linewidth=1)
        most = max(one.count for one in bins)
        for one in bins:
            size = 4 + 12 * (one.count / most) ** 0.5
            axes.plot(one.mean_probability, one.share_right, "o", color=_ACCENT, markersize=size)

    error = metrics.expected_calibration_error(bins)
    return [
        (
            _svg(draw_curve, "Precision and recall of the candidates at every threshold"),
            f"{len(labels):,} codes to choose from, {sum(labels):,} of them gold.",
        ),
        (
            _svg(draw_bins, "Share of right candidates by their mean probability"),
            "Calibration by tenths of probability; the larger a point, the more candidates. "
            f"Expected calibration error {error:.3f}.",
        ),
    ]


def _svg(draw: "Callable[[Axes], None]", title: str) -> Markup:
    """A chart of shares as inline SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # ids are unique to the chart, and the same in every run
        "path.simplify_threshold": 0.5,
        "axes.spines.right": False,
        "axes.spines.top": False,
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), _MUTED),
        **dict.fromkeys(("axes.labelcolor", "text.color"), _INK),
    }
    file = io.StringIO()
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.8, 3.6), layout="constrained")
        draw(figure.subplots(subplot_kw={"xlim": (-0.02, 1.02), "ylim": (-0.02, 1.02)}))
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r'<g id="[^"]*"', "<g", file.getvalue().partition("<svg")[2])
    for drawn, shown in ((_INK, "ink"), (_MUTED, "muted"), (_ACCENT, "accent")):
        svg = svg.replace(drawn, f"var(--{shown})")
    return Markup(f'<svg role="img" aria-label="{escape(title)}"{svg}')  # noqa: S704


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"  # noqa: PLR2004


def _interval(interval: Sequence[float] | None) -> str:
    return " to ".join(map(_number, interval or ()))
