"""Whether what was read as a row of an ablation is one: all that runs and reports take from it is there."""

import re
from typing import Any

from subfit.tracking.records import is_list_of_names, is_size, is_whole

SITE = re.compile(r"(attention|ffn)\.\d+")
RETAINED = ("retained", "retained_above_chance")
MEASURED = ("perplexity_ratio", "agreement", "kl")  # on each text
STAGES = ("score", "select", "fit")  # whose seconds are known


def is_row(row: Any) -> bool:
    """Whether plain data are a row, of a cell that is done or has failed."""
    if not isinstance(row, dict) or not isinstance(row.get("cell"), str) or not isinstance(row.get("values", {}), dict):
        return False
    if not isinstance(row.get("format_version", 1), int):
        return False
    if not is_number(row.get("total_seconds", 0)) or not isinstance(row.get("configuration", {}), dict):
        return False
    if not isinstance(row.get("depends_on", {}), dict):
        return False
    if row.get("status") == "failed":
        return isinstance(row.get("error"), str)
    return row.get("status") == "done" and _is_measured(row)


def _is_measured(row: dict[str, Any]) -> bool:
    """Whether the record of a compression, and what was measured on each text, is in a row."""
    parts = {name: row.get(name) for name in ("values", "configuration", "scores", "texts", "seconds", "size")}
    if not all(isinstance(part, dict) for part in parts.values()) or not is_list_of_names(row.get("selected")):
        return False
    scores, texts, seconds = (row[name] for name in ("scores", "texts", "seconds"))
    return (
        all(SITE.fullmatch(name) and is_number(score) for name, score in scores.items())
        and all(isinstance(text, dict) and _is_text(text) for text in texts.values())
        and "scorer" in row["configuration"]
        and ("tasks_mean" not in row or _are_tasks(row["tasks_mean"]))
        and _are_mappings(row.get("tasks", {}), *_values(row.get("tasks")))
        and all(_are_answers(task.get("correct", "")) for task in _values(row.get("tasks")))
        and _are_mappings(row.get("evaluation_tokens", {}), row.get("text_tokens", {}), row.get("finetune", {}))
        and _are_mappings(*row.get("text_tokens", {}).values())
        and all(is_number(seconds.get(stage)) for stage in STAGES)
        and is_size(row["size"])
        and is_whole(row["size"].get("added_parameters"))
    )


def _is_text(text: dict[str, Any]) -> bool:
    """Whether what was measured on a text is there; and what is not in all rows, if it is."""
    interval, losses = text.get("perplexity_ratio_interval"), text.get("window_losses", [])
    return (
        all(is_number(text.get(name)) for name in MEASURED)
        and not text["perplexity_ratio"] <= 0  # NaN is one
        and (interval is None or _are_numbers(interval, 2))
        and _are_numbers(losses)
    )


def _are_tasks(tasks: Any) -> bool:
    """Whether what was measured on the tasks together is there."""
    if not isinstance(tasks, dict):
        return False
    intervals = [tasks.get(f"{name}_interval") for name in RETAINED]
    numbers = [tasks.get(name) for name in (*RETAINED, "difference_error")]
    return (
        is_number(tasks.get("reference_accuracy"))
        and all(number is None or is_number(number) for number in numbers)
        and all(interval is None or _are_numbers(interval, 2) for interval in intervals)
    )


def _values(mapping: Any) -> list[Any]:
    return list(mapping.values()) if isinstance(mapping, dict) else []


def _are_answers(value: Any) -> bool:
    """Whether a value has a digit for each item of a task, 1 where it is right."""
    return isinstance(value, str) and set(value) <= {"0", "1"}


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _are_numbers(values: Any, count: int | None = None) -> bool:
    """Whether a value is a list of numbers, of so many if that is given."""
    return isinstance(values, list) and all(map(is_number, values)) and count in (None, len(values))


def is_number(value: Any) -> bool:
    """Whether a value is a number, NaN and infinity included; whole ones within 64 bits."""
    return isinstance(value, float) or is_whole(value)
