"""What the benchmark reports: ratios, a table and figures."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

FLOOR = "table frozen"

Case = dict[str, Any]
Measurement = dict[str, Any]

# Okabe and Ito's colours, which can be told apart without seeing all colours.
COLOURS = ["#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00", "#CC79A7", "#999999"]
MARKERS = "os^Dvx*P"
LEAST_SPAN = 10  # of a logarithmic axis: the highest value by the lowest
AXES = {
    "rows": "rows of the table",
    "trainable": "rows that train",
    "batch": "texts in a batch",
}


class Result(NamedTuple):
    """A case and what was measured in each round."""

    case: Case
    measurements: list[Measurement]


class Ratio(NamedTuple):
    """A ratio of times within a round: the median over rounds, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.lowest)} to {_short(self.highest)})"


def ratio(result: Result, floor: Result, of: str = "step", to: str | None = None) -> Ratio | None:
    """How long `result` took, as a multiple of what `floor` took in the same round.

    Args:
        of: the name of a measurement.
        to: the name of the measurement of `floor`, if it is another.
    """
    pairs = zip(result.measurements, floor.measurements, strict=True)
    ratios = [a[of] / b[to or of] for a, b in pairs if a[of] is not None]
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None


def cells_of(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of a table of results, with ratios to the floor among them."""
    floor = next((result for result in results if result.case["way"] == FLOOR), results[0])
    headings = ["way", "step,\nms", f"times {floor.case['way']}\n(low to high)", *COLUMNS]
    rows = [[result.case["way"], *(cell(result, floor) for cell in CELLS)] for result in results]
    return headings, rows


COLUMNS = [
    "frozen rows\nchanged",
    "predict,\nafter/before",
    "evaluate,\nafter/before",
    "peak,\nMB",
    "state,\nMB",
    "replicas,\nMB",
]

MEANINGS = (
    "predict and evaluate: the time that they take after the training, by the time before it. "
    "peak: the most memory that was in use above the table. state: what the optimizer keeps. "
    "replicas: the gradients of a step, which devices that train together send each other."
)


def _milliseconds(result: Result, floor: Result) -> str:
    return _short(median_of(result, "step") * 1e3)


def _ratio_to_floor(result: Result, floor: Result) -> str:
    return str(ratio(result, floor))


def _after_before(what: str) -> Callable[[Result, Result], str]:
    def cell(result: Result, floor: Result) -> str:
        change = ratio(result, result, of=f"{what}_after", to=f"{what}_before")
        return "-" if change is None else _short(change.median)

    return cell


def _megabytes(what: str) -> Callable[[Result, Result], str]:
    def cell(result: Result, floor: Result) -> str:
        value = median_of(result, what)
        return "-" if value is None else _short(value / 1e6)

    return cell


def _changed_rows(result: Result, floor: Result) -> str:
    return f"{max(m['changed_rows'] for m in result.measurements):,}"


CELLS: list[Callable[[Result, Result], str]] = [
    _milliseconds,
    _ratio_to_floor,
    _changed_rows,
    _after_before("predict"),
    _after_before("evaluate"),
    _megabytes("peak_bytes"),
    _megabytes("state_bytes"),
    _megabytes("replica_bytes"),
]


def median_of(result: Result, what: str) -> Any:
    """The median of a measurement over the rounds, or `None` where it was not measured."""
    values = [m[what] for m in result.measurements if m[what] is not None]
    return median(values) if values else None


def _short(number: float) -> str:
    return f"{number:,.2f}" if number < 10 else f"{number:,.0f}"


def draw(results: Sequence[Result], sweep: str | None) -> Any:
    """A figure of the time of a step for each way: as points, or over the values of a sweep."""
    from matplotlib.figure import Figure

    ways = list(dict.fromkeys(result.case["way"] for result in results))
    figure = Figure(figsize=(7.5, 4.2 if sweep else 0.5 * len(ways) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    if sweep:
        _draw_lines(axes, results, ways, sweep)
    else:
        _draw_points(axes, results)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_lines(axes: Any, results: Sequence[Result], ways: Sequence[str], sweep: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for place, way in enumerate(ways):
        swept = [result for result in results if result.case["way"] == way]
        axes.loglog(
            [result.case[sweep] for result in swept],
            [median_of(result, "step") * 1e3 for result in swept],
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            linestyle="--" if way == FLOOR else "-",
            label=way,
        )
    axes.set(xlabel=AXES[sweep], ylabel="training step, ms")
    lowest, highest = axes.get_ylim()
    if highest < LEAST_SPAN * lowest:
        # Noise of some per cent would fill the figure, and look like a steep curve.
        middle, half = (lowest * highest) ** 0.5, LEAST_SPAN**0.5
        axes.set_ylim(middle / half, middle * half)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _draw_points(axes: Any, results: Sequence[Result]) -> None:
    # A logarithmic axis has no zero for bars to start from.
    ordered = sorted(results, key=lambda result: -median_of(result, "step"))
    for height, result in enumerate(ordered):
        milliseconds = median_of(result, "step") * 1e3
        colour = "#0072B2" if "maskedgrad" in result.case["way"] else "#666666"
        axes.plot(milliseconds, height, "o", color=colour)
        axes.annotate(
            f"{milliseconds:,.1f}",
            (milliseconds, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.set_yticks(range(len(ordered)), [result.case["way"] for result in ordered])
    axes.set(xscale="log", xlabel="training step, ms")
    axes.grid(axis="both", alpha=0.3)
    axes.margins(x=0.15, y=0.08)
