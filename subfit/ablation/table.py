"""The table of a report: a column for each axis and each measurement, a row for each cell."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.ticker import EngFormatter

from subfit.ablation.measures import Row, axis_label, cache_left, first_text, is_numeric, net_parameters
from subfit.ablation.row_format import STAGES

Field = tuple[Any, str]  # what a field is sorted by, and what is shown of it


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: its heading, with the unit, and an arrow that says which way is better.
        field: what it has of a row.
        text: whether it holds text instead of numbers.
        setting: whether it holds what was set, not what was measured.
    """

    name: str
    field: Callable[[Row], Field]
    text: bool = False
    setting: bool = False


def columns_of(rows: list[Row], axes: list[str]) -> list[Column]:
    """Returns the columns: axes, perplexity ratios by text, accuracies if there are any, and what every row has."""
    found = [Column(axis, partial(_value, axis), not is_numeric(rows, axis), setting=True) for axis in axes]
    texts = dict.fromkeys(name for row in rows for name in row["texts"])
    found += [Column(f"perplexity ratio, {name} ↓", partial(_ratio, name)) for name in texts]
    if any("tasks_mean" in row for row in rows):
        found += [Column("accuracy retained ↑", _retained), Column("accuracy retained above chance ↑", _above_chance)]
    return [
        *found,
        Column("same next token ↑", lambda row: _shown(first_text(row)["agreement"], ".0%")),
        Column("KL divergence, nats ↓", lambda row: _shown(first_text(row)["kl"], ".2f")),
        Column("parameters removed, net ↑", lambda row: _count(net_parameters(row))),
        Column("parameters added", lambda row: _count(row["size"]["added_parameters"])),
        Column("KV cache left ↓", lambda row: _shown(cache_left(row), ".0%")),
        Column("time to compress, s ↓", lambda row: _shown(sum(row["seconds"][stage] for stage in STAGES), ".0f")),
    ]


def markdown(columns: Sequence[Column], rows: list[Row]) -> str:
    """Returns the table in Markdown."""
    lines = [[column.name for column in columns], ["---" if column.text else "---:" for column in columns]]
    lines += [[column.field(row)[1] for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: float | None, form: str) -> Field:
    return ("", "") if value is None else (value, format(value, form))


def _count(number: int) -> Field:
    """A number of parameters, in thousands or millions from a thousand on."""
    return number, EngFormatter(places=1)(number) if abs(number) >= 1000 else str(number)


def _value(axis: str, row: Row) -> Field:
    shown = axis_label(row, axis)
    return shown, shown


def _ratio(text: str, row: Row) -> Field:
    """A perplexity ratio, with its interval, to two decimals at most, and to two digits of half the interval's width."""
    measured = row["texts"].get(text, {})
    value, interval = measured.get("perplexity_ratio"), measured.get("perplexity_ratio_interval")
    if value is None:
        return "", ""
    if not interval:
        return value, f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
    half = (interval[1] - interval[0]) / 2
    digits = min(max(1 - math.floor(math.log10(half)), 0), 2) if 0 < half < math.inf else 2
    return value, f"{value:,.{digits}f} [{interval[0]:,.{digits}f}, {interval[1]:,.{digits}f}]"


def _retained(row: Row) -> Field:
    """The accuracy as a share of the reference's, shown with the 95 % interval of the paired difference."""
    tasks = row.get("tasks_mean", {})
    value, shown = _shown(tasks.get("retained"), ".0%")
    if shown and tasks["difference_error"] is not None:
        spread = 1.96 * tasks["difference_error"] / tasks["reference_accuracy"]
        shown += f" [{value - spread:.0%}, {value + spread:.0%}]"
    return value, shown


def _above_chance(row: Row) -> Field:
    return _shown(row.get("tasks_mean", {}).get("retained_above_chance"), ".0%")
