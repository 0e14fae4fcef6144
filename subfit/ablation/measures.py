"""What reports take from the rows of an ablation."""

import json
import math
from collections.abc import Sequence
from typing import Any

from subfit.evaluation.limits import NORMAL

Row = dict[str, Any]


def first_text(row: Row) -> dict[str, Any]:
    """Returns what was measured on the first text that a row was evaluated on."""
    return next(iter(row["texts"].values()))


def ratio(row: Row) -> float:
    """Returns a row's perplexity ratio on the first text that it was evaluated on."""
    return first_text(row)["perplexity_ratio"]


def is_finite(row: Row) -> bool:
    """Returns whether a row's perplexity ratios can be drawn and compared: those of a lost model may be infinite."""
    return all(math.isfinite(text["perplexity_ratio"]) for text in row["texts"].values())


def net_parameters(row: Row) -> int:
    """Returns how many parameters left the model, bypasses deducted."""
    return row["size"]["before"]["parameters"] - row["size"]["after"]["parameters"]


def cache_left(row: Row) -> float:
    """Returns the share of the key-value cache that is left."""
    return row["size"]["after"]["kv_bytes_per_token"] / row["size"]["before"]["kv_bytes_per_token"]


def retained_interval(tasks: dict[str, Any]) -> Sequence[float] | None:
    """Returns the 95 % interval of the accuracy retained, from a row's `tasks_mean`; None if there is none.

    Of rows that do not have it, that of the difference, as a share of the reference's accuracy.
    """
    if "retained_interval" in tasks or tasks.get("difference_error") is None:
        found: Sequence[float] | None = tasks.get("retained_interval")
        return found
    spread = NORMAL * tasks["difference_error"] / tasks["reference_accuracy"]
    return [tasks["retained"] - spread, tasks["retained"] + spread]


def label(value: Any) -> str:
    """Returns a value of an axis in short: a strategy as its name and arguments."""
    if isinstance(value, dict) and "class_path" in value and isinstance(value.get("init_args", {}), dict):
        arguments = ", ".join(f"{key}={label(item)}" for key, item in value.get("init_args", {}).items())
        return f"{value['class_path']}({arguments})" if arguments else str(value["class_path"])
    if isinstance(value, list):
        return "[" + ", ".join(map(label, value)) + "]"
    return str(value) if isinstance(value, str) else json.dumps(value)


def axis_label(row: Row, axis: str) -> str:
    """Returns a row's value of an axis in short."""
    return label(row["values"].get(axis))


def varying(rows: list[Row], axes: Sequence[str]) -> list[str]:
    """Returns those of the axes along which the rows differ."""
    return [axis for axis in axes if len({axis_label(row, axis) for row in rows}) > 1]


def is_numeric(rows: list[Row], axis: str) -> bool:
    """Returns whether all rows have a number on an axis."""
    values = [row["values"].get(axis) for row in rows]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def grouped(rows: list[Row], axes: Sequence[str]) -> dict[str, list[Row]]:
    """Returns the rows by their values of some axes, a number with the name of its axis."""
    numeric = {axis: is_numeric(rows, axis) for axis in axes}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        names = [f"{axis} {axis_label(row, axis)}" if numeric[axis] else axis_label(row, axis) for axis in axes]
        groups.setdefault(", ".join(names), []).append(row)
    return groups


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points (saved, cost) that no other saves as much as at a lower cost, by what they save."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front[::-1]
