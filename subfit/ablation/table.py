"""The table of a report: a column for each axis and each measurement, a row for each cell."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.ticker import EngFormatter

from subfit.ablation.measures import (
    Row,
    axis_label,
    cache_left,
    first_text,
    is_numeric,
    net_parameters,
    retained_interval,
)
from subfit.ablation.resolution import SIGNIFICANCE, unresolved, unresolved_accuracies
from subfit.ablation.row_format import STAGES
from subfit.evaluation.limits import FEWEST_ITEMS, FEWEST_SEEDS, FEWEST_WINDOWS

MARK = "≈"  # of a ratio that may be the lowest by chance, or an accuracy that may be the highest

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
    if any("seeds" in row for row in rows):
        found.append(Column("seeds", lambda row: (len(row["seeds"]), str(len(row["seeds"]))), setting=True))
    for name in dict.fromkeys(name for row in rows for name in row["texts"]):
        marked = {id(row) for row in unresolved(rows, axes, name)}
        found.append(Column(f"perplexity ratio, {name} ↓", partial(_ratio, name, marked)))
    if any("tasks_mean" in row for row in rows):
        marked = {id(row) for row in unresolved_accuracies(rows, axes)}
        found.append(Column("accuracy retained ↑", partial(_retained, marked)))
        found.append(Column("accuracy retained above chance ↑", _above_chance))
    return [
        *found,
        Column("same next token ↑", lambda row: _shown(first_text(row)["agreement"], ".0%")),
        Column("KL divergence, nats ↓", lambda row: _shown(first_text(row)["kl"], ".2f")),
        Column("parameters removed, net ↑", lambda row: _count(net_parameters(row))),
        Column("parameters added", lambda row: _count(row["size"]["added_parameters"])),
        Column("KV cache left ↓", lambda row: _shown(cache_left(row), ".0%")),
        Column("time to compress, s ↓", lambda row: _shown(sum(row["seconds"][stage] for stage in STAGES), ".0f")),
    ]


def notes(columns: Sequence[Column], rows: list[Row]) -> list[str]:
    """Returns what is to be said of the table: which differences may be chance, and why there are no intervals."""
    found, shown = [], [column.field(row)[1] for column in columns for row in rows]
    seeds = any("seeds" in row for row in rows)
    if seeds:
        found.append("Ratios are geometric means over the seeds, with Student's intervals over them.")
    if any(text.endswith(MARK) for text in shown):
        paired = f"paired tests over the {'seeds' if seeds else 'windows, or items'}"
        best = "the lowest ratio, or the highest accuracy, at the same value of the first numeric axis"
        found.append(f"{MARK}: not resolved from {best} ({paired}, p ≥ {SIGNIFICANCE} after Holm's correction).")
    if any(not text.get("perplexity_ratio_interval") for row in rows for text in row["texts"].values()):
        fewest = f"{FEWEST_SEEDS} seeds" if seeds else f"{FEWEST_WINDOWS} windows"
        found.append(f"A ratio without an interval is from too few measurements: at least {fewest} are needed.")
    tasks = [row["tasks_mean"] for row in rows if "tasks_mean" in row]
    if any(one.get("retained") is not None and not retained_interval(one) for one in tasks):
        fewest = f"{FEWEST_SEEDS} seeds" if seeds else f"{FEWEST_ITEMS} items of each task"
        found.append(f"An accuracy without an interval is from too few measurements: at least {fewest} are needed.")
    return found


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


def _ratio(text: str, marked: set[int], row: Row) -> Field:
    """A perplexity ratio; marked if it may be the lowest by chance.

    Args:
        marked: the identities of the rows to mark.
    """
    return _marked(_with_interval(text, row), marked, row)


def _marked(field: Field, marked: set[int], row: Row) -> Field:
    value, shown = field
    return value, f"{shown} {MARK}" if id(row) in marked else shown


def _with_interval(text: str, row: Row) -> Field:
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


def _retained(marked: set[int], row: Row) -> Field:
    """The accuracy as a share of the reference's, with its 95 % interval; marked if it may be the highest by chance."""
    tasks = row.get("tasks_mean", {})
    value, shown = _shown(tasks.get("retained"), ".0%")
    if shown and (interval := retained_interval(tasks)):
        shown += f" [{interval[0]:.0%}, {interval[1]:.0%}]"
    return _marked((value, shown), marked, row)


def _above_chance(row: Row) -> Field:
    return _shown(row.get("tasks_mean", {}).get("retained_above_chance"), ".0%")
