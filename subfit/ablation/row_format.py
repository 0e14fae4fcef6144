"""Whether what was read as a row of an ablation is one: all that runs and reports take from it is there."""

import re
from typing import Any

from subfit.tracking.records import is_list_of_names, is_size

SITE = re.compile(r"(attention|ffn)\.\d+")
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
        and all(isinstance(text, dict) and all(is_number(text.get(n)) for n in MEASURED) for text in texts.values())
        and all(is_number(seconds.get(stage)) for stage in STAGES)
        and is_size(row["size"])
        and isinstance(row["size"].get("added_parameters"), int)
    )


def is_number(value: Any) -> bool:
    """Whether a value is a number, NaN and infinity included."""
    return isinstance(value, int | float) and not isinstance(value, bool)
