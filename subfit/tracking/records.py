"""A record as tables: one flat line for the whole, and one row for each site."""

from collections.abc import Mapping, Sequence
from typing import Any

from subfit.errors import SubFitError

FORMAT_VERSION = 2  # of a record (`compression.json`, a row of an ablation); those of format 1 have no number
SITES = ("site", "kind", "layer", "score", "selected", "explained_variance")


def check_format(content: Mapping[str, Any], place: str) -> None:
    """Raises SubFitError if a record, or what else has a `format_version`, was written by a newer version of SubFit."""
    found = content.get("format_version", 1)
    if found > FORMAT_VERSION:
        upgrade = f"written by a newer subfit (format {found}; this one reads up to {FORMAT_VERSION}): upgrade"
        raise SubFitError(f"{place}: {upgrade}")


def flat(row: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested mappings as one, the keys joined by dots; a list as its items joined by spaces."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{key}.")
        else:
            found[before + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found


def site_rows(record: dict[str, Any]) -> Sequence[tuple[Any, ...]]:
    """Returns what a record says of each site: a row with the columns `SITES`."""
    explained = record["explained_variance"]
    rows = []
    for name, score in record["scores"].items():
        kind, layer = name.split(".")
        rows.append((name, kind, int(layer), score, name in record["selected"], explained.get(name)))
    return rows
