"""A record as tables: one flat line for the whole, and one row for each site."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subfit.errors import SubFitError, shown
from subfit.options.reading import read_json

FORMAT_VERSION = 2  # of a record (`compression.json`, a row of an ablation); those of format 1 have no number
LARGEST = (1 << 63) - 1
SITES = ("site", "kind", "layer", "score", "selected", "explained_variance")


def check_format(content: Mapping[str, Any], place: str) -> None:
    """Raises SubFitError if a record, or what else has a `format_version`, was written by a newer version of SubFit."""
    found = content.get("format_version", 1)
    if not isinstance(found, int):
        raise SubFitError(f"{place}: format_version is {shown(found)}; it must be a whole number")
    if found > FORMAT_VERSION:
        upgrade = f"written by a newer subfit (format {found}; this one reads up to {FORMAT_VERSION}): upgrade"
        raise SubFitError(f"{place}: {upgrade}")


def read_record(path: Path) -> dict[str, Any]:
    """Returns the record of a compression.

    Raises:
        SubFitError: if it cannot be read, is not what `subfit compress` wrote, or was written by a newer version of SubFit.
    """
    record = read_json(path)
    check_format(record, str(path))
    parts = {name: record.get(name, {}) for name in ("configuration", "evaluation")}
    parts |= {name: record.get(name) for name in ("scores", "size")}
    for name, value in parts.items():
        if not isinstance(value, dict):
            raise SubFitError(f"{path}: {name} is {shown(value)}; it must be a mapping")
    if not is_list_of_names(record.get("selected")):
        raise SubFitError(f"{path}: selected is {shown(record.get('selected'))}; it must be a list of submodules")
    if not is_size(record["size"]):
        raise SubFitError(f"{path}: size is {shown(record['size'])}; it must have the parameters before and after")
    return record


def is_list_of_names(value: Any) -> bool:
    """Whether a part of a record is a list of strings."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_size(value: Any) -> bool:
    """Whether a part of a record is what `pipeline.compression_sizes` returns, as far as reports use it."""
    counts = ("parameters", "kv_bytes_per_token")
    sides = [value.get(side) for side in ("before", "after")] if isinstance(value, dict) else [None]
    return all(isinstance(side, dict) and all(is_whole(side.get(name)) for name in counts) for side in sides)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number that computations take, within 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


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
        kind, layer, *_ = name.split(".")
        rows.append((name, kind, int(layer), score, name in record["selected"], explained.get(name)))
    return rows
