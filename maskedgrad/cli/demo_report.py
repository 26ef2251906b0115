"""What the demo reports: tables, what they come to in words, and figures."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from maskedgrad.cli import figure
from maskedgrad.cli.comparison import Outcome, Training
from maskedgrad.cli.console import TIMES_MASK_NOTE, print_table
from maskedgrad.cli.prose import VALIDATION
from maskedgrad.cli.symbols import SYMBOLS, UNSEEN
from maskedgrad.cli.task import Task, nearest_words

FROZEN, WHOLE, MASKED = "table frozen", "table trainable", "maskedgrad"
TIMES_MASK = "gradient times mask"
Summary = Mapping[str, Any]


def print_report(
    console: Any,
    task: Task,
    outcomes: Mapping[str, Sequence[Outcome]],
    summaries: Mapping[str, Summary],
    training: Training,
) -> None:
    """Prints the table of a task, and what it shows."""
    columns = COLUMNS_OF_SYMBOLS if SYMBOLS in task.tests else COLUMNS_OF_PROSE
    rows = [
        [way, *(cell(summary) for cell in columns.values())] for way, summary in summaries.items()
    ]
    print_table(console, ["", *columns], rows)
    console.print(
        f"Accuracies after {_counted(training.epochs, 'epoch')}: mean and standard deviation of "
        f"{_counted(training.seeds, 'seed')}. {100 / len(task.classes):.3g}% is chance."
    )
    if SYMBOLS in task.tests:
        lines = [*compared(summaries), *neighbours(task, outcomes)]
    else:
        lines = conclusion(summaries, len(task.matrix) - task.num_symbols)
    for line in lines:
        console.print(line)


def compared(summaries: Mapping[str, Summary]) -> list[str]:
    """What the ways come to beside each other, in sentences.

    Args:
        summaries: what `summarize` says of each way.

    Example:

    >>> def way(unseen, symbols, changed):
    ...     accuracies = {"unseen words": unseen, "symbols": symbols}
    ...     return {"accuracies": accuracies, "frozen_rows_changed": changed}
    >>> ways = {"table frozen": way(0.7, 0.2, 0), "table trainable": way(0.6, 1.0, 9)}
    >>> print(*compared({**ways, "maskedgrad": way(0.69, 1.0, 0)}), sep="\\n")
    Unseen words, in points above the frozen table: table trainable -10.0; maskedgrad -1.0.
    Symbols, in points above the table trained whole: table frozen -80.0; maskedgrad +0.0.
    """
    lines = []
    for test, base, name in [
        (UNSEEN, FROZEN, "frozen table"),
        (SYMBOLS, WHOLE, "table trained whole"),
    ]:
        if base in summaries:
            points = {way: 100 * summary["accuracies"][test] for way, summary in summaries.items()}
            others = [f"{way} {points[way] - points[base]:+.1f}" for way in points if way != base]
            lines.append(
                f"{test.capitalize()}, in points above the {name}: {'; '.join(others) or 'no way'}."
            )
    return lines


def neighbours(task: Task, outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Where the symbols went, in sentences: the words that are nearest to each."""
    table = outcomes[MASKED][0].table if MASKED in outcomes else None
    if table is None:
        return []
    return [
        f"{symbol} went from zero to the neighbourhood of: {', '.join(each.word for each in near)}"
        for symbol, near in zip(
            task.symbols, nearest_words(table, task.vocabulary, task.symbol_ids), strict=True
        )
    ]


def conclusion(summaries: Mapping[str, Summary], num_frozen: int) -> list[str]:
    """What a newcomer should see in the table of the prose, in sentences.

    Args:
        summaries: what `summarize` says of each way.
        num_frozen: how many rows should not change.

    Example:

    >>> kept = {"frozen_rows_changed": 0, "symbol_distances": {"<a>": 0.5, "<b>": 1.0}}
    >>> print(*conclusion({"maskedgrad": kept, "a leak": {"frozen_rows_changed": 7}}, 7), sep="\\n")
    7 rows should keep every bit. They do with: maskedgrad. Some change with: a leak.
    With maskedgrad the symbols moved by 0.75 on average from zero, where they started.
    """
    changing = [way for way in summaries if summaries[way]["frozen_rows_changed"]]
    keeping = [way for way in summaries if way not in changing]
    lines = [
        f"{num_frozen:,} rows should keep every bit. They do with: "
        f"{', '.join(keeping) or 'none'}. Some change with: {', '.join(changing) or 'none'}."
    ]
    if MASKED in summaries:
        distance = fmean(summaries[MASKED]["symbol_distances"].values())
        lines.append(
            f"With maskedgrad the symbols moved by {distance:.2f} on average from zero, "
            "where they started."
        )
    if TIMES_MASK in summaries:
        lines.append(TIMES_MASK_NOTE)
    return lines


def draw(task: Task, outcomes: Mapping[str, Sequence[Outcome]]) -> Any:
    """A figure with bars for the constructed task, and with learning curves for the prose."""
    trained = outcomes.get(MASKED)
    places = figure.Places(trained[0].table if trained else None, task.vocabulary, task.symbol_ids)
    if SYMBOLS in task.tests:
        bars = {
            way: {
                TESTS_IN_FIGURE[test]: [run.accuracies[test] for run in runs] for test in task.tests
            }
            for way, runs in outcomes.items()
        }
        return figure.bars_and_map(bars, 1 / len(task.classes), places)
    curves = {
        f"{way}: {max(run.change.rows for run in runs):,} frozen rows changed": np.array(
            [run.curve for run in runs]
        )
        for way, runs in outcomes.items()
    }
    return figure.curves_and_map(curves, places)


TESTS_IN_FIGURE = {
    UNSEEN: "sentences with words\nnever seen in training",
    SYMBOLS: "sentences with\nthe new symbols",
}


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _accuracy(test: str) -> Callable[[Summary], str]:
    def cell(summary: Summary) -> str:
        mean, deviation = summary["accuracies"][test], summary["accuracy_deviations"][test]
        return f"{100 * mean:.1f} ± {100 * deviation:.1f} %"

    return cell


def _changed(summary: Summary) -> str:
    return f"{summary['frozen_rows_changed']:,}"


COLUMNS_OF_SYMBOLS: dict[str, Callable[[Summary], str]] = {
    "words never seen\nin training": _accuracy(UNSEEN),
    "the new\nsymbols": _accuracy(SYMBOLS),
    "frozen rows\nchanged": _changed,
}
COLUMNS_OF_PROSE: dict[str, Callable[[Summary], str]] = {
    "validation\naccuracy": _accuracy(VALIDATION),
    "trainable\nparameters": lambda summary: f"{summary['trainable_parameters']:,}",
    "training\nstep": lambda summary: f"{1000 * summary['step_seconds']:.1f} ms",
    "optimizer\nmemory": lambda summary: f"{summary['optimizer_bytes'] / 1000:,.0f} KB",
    "frozen\nrows\nchanged": _changed,
    "largest\nchange": lambda summary: f"{summary['largest_change']:.1g}",
}
