"""The table of a report: a column for each axis and each measurement, a row for each cell."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from subfit.ablation.figures import Row, label, net_parameters

STAGES = ("score", "select", "fit")  # of a compression, whose seconds are added

Field = tuple[Any, str]  # what a field is sorted by, and what is shown of it


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: its heading.
        field: what it has of a row.
        text: whether it holds text instead of numbers.
    """

    name: str
    field: Callable[[Row], Field]
    text: bool = False


def columns_of(rows: list[Row], axes: list[str]) -> list[Column]:
    """Returns the columns: axes, perplexity ratios by text, accuracies if there are any, and what every row has."""
    found = [Column(axis, partial(_value, axis), not _are_numbers(rows, axis)) for axis in axes]
    texts = dict.fromkeys(name for row in rows for name in row["texts"])
    found += [Column(f"ratio, {name}", partial(_ratio, name)) for name in texts]
    if any("tasks_mean" in row for row in rows):
        found += [Column("accuracy retained", _retained), Column("above chance", _above_chance)]
    return [
        *found,
        Column("agreement", lambda row: _shown(_first_text(row)["agreement"], ".1%")),
        Column("KL", lambda row: _shown(_first_text(row)["kl"], ".3f")),
        Column("net parameters", lambda row: _shown(net_parameters(row), ",")),
        Column("added", lambda row: _shown(row["size"]["added_parameters"], ",")),
        Column("KV cache", _kv_cache),
        Column("compress, s", lambda row: _shown(sum(row["seconds"][stage] for stage in STAGES), ".0f")),
    ]


def markdown(columns: list[Column], rows: list[Row]) -> str:
    """Returns the table in Markdown."""
    lines = [[column.name for column in columns], ["---"] * len(columns)]
    lines += [[column.field(row)[1] for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _are_numbers(rows: list[Row], axis: str) -> bool:
    return all(isinstance(row["values"].get(axis), int | float) for row in rows)


def _shown(value: float | None, form: str) -> Field:
    return ("", "") if value is None else (value, format(value, form))


def _value(axis: str, row: Row) -> Field:
    shown = label(row["values"].get(axis))
    return shown, shown


def _first_text(row: Row) -> dict[str, Any]:
    return next(iter(row["texts"].values()))


def _ratio(text: str, row: Row) -> Field:
    """A perplexity ratio, shown with its interval."""
    measured = row["texts"].get(text, {})
    value, shown = _shown(measured.get("perplexity_ratio"), ".3f")
    interval = measured.get("perplexity_ratio_interval")
    return value, shown + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _retained(row: Row) -> Field:
    """The accuracy as a share of the reference's, shown with the 95 % interval of the paired difference."""
    tasks = row.get("tasks_mean", {})
    value, shown = _shown(tasks.get("retained"), ".1%")
    if shown and tasks["difference_error"] is not None:
        spread = 1.96 * tasks["difference_error"] / tasks["reference_accuracy"]
        shown += f" [{value - spread:.1%}, {value + spread:.1%}]"
    return value, shown


def _above_chance(row: Row) -> Field:
    return _shown(row.get("tasks_mean", {}).get("retained_above_chance"), ".1%")


def _kv_cache(row: Row) -> Field:
    before, after = (row["size"][when]["kv_bytes_per_token"] for when in ("before", "after"))
    return _shown(after / before, ".0%")
