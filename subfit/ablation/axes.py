"""The axes of a grid file: which values each cell has, and the options that they set."""

import itertools
from collections.abc import Hashable, Iterator
from typing import Any

from subfit.config import OPTIONS
from subfit.errors import SubFitError, shown
from subfit.registry import read_configuration

CELL_OPTIONS = frozenset(OPTIONS) - {"output"}

Values = dict[str, Any]


def combinations(path: str, content: dict[str, Any]) -> Iterator[Values]:
    """Yields the values of each cell by axis, every combination of `axes` and `zip`, then `cells`; see `read_grid`.

    Raises:
        SubFitError: if there is none, or one of these keys holds something else than it should.
    """
    axes, together = (_axes(path, content, key) for key in ("axes", "zip"))
    listed = content.get("cells", [])
    _check_cells(path, axes, together, listed)
    every = [*_products(axes, together), *listed]
    rules = _rules(path, content, every)
    for chosen in every:
        if not any(all(chosen.get(key) == value for key, value in rule.items()) for rule in rules):
            yield chosen


def _check_cells(path: str, axes: dict[str, list[Any]], together: dict[str, list[Any]], listed: Any) -> None:
    """Raises SubFitError if the lists of `zip` differ in length, `cells` is no list of mappings, or there is no cell."""
    if len({len(values) for values in together.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in together.items())
        raise SubFitError(f"{path}: the lists of zip must be of one length; {lengths}")
    if not isinstance(listed, list) or not all(isinstance(cell, dict) and cell for cell in listed):
        raise SubFitError(f"{path}: cells must be a list of mappings of options to values")
    if not (axes or together or listed):
        raise SubFitError(f"{path}: the grid has no cells; give axes, zip or cells")


def _products(axes: dict[str, list[Any]], together: dict[str, list[Any]]) -> list[Values]:
    """Every combination of the values of `axes`, for each row of `zip`; none if both are empty."""
    if not (axes or together):
        return []
    rows = [dict(zip(together, row, strict=True)) for row in zip(*together.values(), strict=True)] or [{}]
    return [row | dict(zip(axes, values, strict=True)) for row in rows for values in itertools.product(*axes.values())]


def cell_sources(path: str, content: dict[str, Any], chosen: Values, allow_code: bool = False) -> list[Values]:
    """Returns the options that a cell's values set, of which the later win; options that follow each other are one source.

    Raises:
        SubFitError: if a value is one of no option and no axis.
    """
    found, together = list[Values](), Values()
    labelled = {**content.get("axes", {}), **content.get("zip", {})}
    for key, value in chosen.items():
        if _is_option(key):
            together[key] = value
            continue
        if key in labelled:
            options = labelled[key].get(value, {}) if isinstance(value, Hashable) else None
            if not isinstance(options, dict):
                raise SubFitError(f"{path}: axis {key!r}: {shown(value)} must be a label, of a mapping of options to values")
        elif key == "config":
            options = {"config": value}
        else:
            raise SubFitError(f"{path}: unknown option {key!r}; options are {', '.join(sorted(CELL_OPTIONS))}")
        found, together = [*found, together], {}
        found += [read_configuration(options["config"], [path], allow_code)] if "config" in options else []
        found.append({name: option for name, option in options.items() if name != "config"})
    return [*found, together]


def _axes(path: str, content: dict[str, Any], key: str) -> dict[str, list[Any]]:
    axes = content.get(key, {})
    if not isinstance(axes, dict):
        raise SubFitError(f"{path}: {key} must be a mapping of options to lists of values")
    for name, values in axes.items():
        kind = list if _is_option(name) else dict
        if not isinstance(values, kind) or not values:
            wanted = "a list of values" if kind is list else "a mapping of labels to options, as it is not itself an option"
            raise SubFitError(f"{path}: axis {name!r} must be {wanted}, and not empty")
    return {name: list(values) for name, values in axes.items()}


def _rules(path: str, content: dict[str, Any], every: list[Values]) -> list[Values]:
    """The rules of `exclude`, each of which leaves out the cells that have all of its values."""
    axes = {key for cell in every for key in cell}
    rules = content.get("exclude", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
        raise SubFitError(f"{path}: exclude must be a list of mappings of axes to values")
    for key, value in ((key, value) for rule in rules for key, value in rule.items()):
        if key not in axes:
            raise SubFitError(f"{path}: exclude names {key!r}, which is no axis; there are {', '.join(sorted(axes))}")
        if not any(cell.get(key) == value for cell in every):
            raise SubFitError(f"{path}: exclude: no cell has the value {shown(value)} of {key}")
    return rules


def _is_option(name: str) -> bool:
    return name.partition(".")[0] in CELL_OPTIONS
