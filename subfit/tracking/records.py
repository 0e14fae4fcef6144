"""A record as tables: nested mappings as one line, what is known of each site as a row."""

from collections.abc import Sequence
from typing import Any

FORMAT_VERSION = 1  # of records, rows and checkpoints; those without one were written before it was counted
SITES = ("site", "kind", "layer", "score", "selected", "explained_variance")


def flat(row: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested mappings as one, the keys joined by dots; a list as its items joined by spaces."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{key}.")
        else:
            found[before + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found


def sites(record: dict[str, Any]) -> Sequence[tuple[Any, ...]]:
    """Returns what a record says of each site: a row with the columns `SITES`."""
    explained = record["explained_variance"]
    rows = []
    for name, score in record["scores"].items():
        kind, layer = name.split(".")
        rows.append((name, kind, int(layer), score, name in record["selected"], explained.get(name)))
    return rows
