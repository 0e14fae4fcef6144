"""Ablation grids: a YAML file that describes many compressions, as a list of cells."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from subfit import registry
from subfit.api import DEFAULTS, EvaluationData, Options
from subfit.config import read_mapping, resolve
from subfit.errors import SubFitError

KEYS = ("base", "options", "axes", "zip", "cells", "exclude", "texts", "tasks", "items")
OPTIONS = frozenset(option.name for option in fields(Options)) - {"output"}


@dataclass(frozen=True)
class Cell:
    """One compression of a grid.

    Attributes:
        values: what sets it apart from the other cells: the value, or the label, of each axis.
        configuration: all its options, as plain data.
        name: depends on the options alone that are not at their defaults, so that options which are new do not change it.
    """

    values: dict[str, Any]
    configuration: dict[str, Any]
    name: str

    def is_row(self, row: dict[str, Any] | None) -> bool:
        """Whether a row is the finished one of this cell, run with the same options as far as there were any."""
        if row is None or row["status"] != "done" or row["cell"] != self.name:
            return False
        return {**self.configuration, **row["configuration"]} == self.configuration


@dataclass
class Grid:
    """The cells of a grid file, and what each is evaluated on besides its own evaluation windows.

    Attributes:
        texts: data sources by name.
        tasks: files of zero-shot tasks.
        items: number of items of each task, the first ones; all if None.
    """

    cells: list[Cell]
    texts: dict[str, EvaluationData]
    tasks: list[str]
    items: int | None

    def check_files(self) -> None:
        """Raises SubFitError if a text file that a cell needs is missing."""
        named = [EvaluationData(**cell.configuration[key]) for cell in self.cells for key in ("calibration", "evaluation")]
        for data in [*named, *self.texts.values()]:
            data.check_files()


def read_grid(path: str) -> Grid:
    """Reads a grid file.

    Its keys, of which one of `axes`, `zip` and `cells` is needed:

    - `base`: a configuration file, or a list of them, of which the later wins; relative to the grid file, as all files here.
    - `options`: options that all cells have besides.
    - `axes`: a mapping of options to lists of values; every combination is a cell. An option inside another one is named
      with dots, such as `scorer.init_args.quantile`. An axis that is not named like an option is a mapping of labels to
      options that are set together, among which may be `config`, a configuration file. Later axes win.
    - `zip`: as `axes`, but the lists are of one length, and go together.
    - `cells`: a list of mappings of options.
    - `exclude`: a list of mappings; a cell is left out that has all values of one of them.
    - `texts`: further texts to evaluate each cell on: a mapping of names to data sources, as for `evaluation`.
    - `tasks`: files of zero-shot tasks to evaluate each cell on, see `evaluation.tasks.read_task`; of
      each, the first `items`, or all.

    Raises:
        SubFitError: if the file cannot be read, or a cell of it could not be run, or two cells are the same.
    """
    content = read_mapping(path)
    for key in content:
        if key not in KEYS:
            raise SubFitError(f"{path}: unknown key {key!r}; a grid has {', '.join(KEYS)}")
    folder = Path(path).parent
    base: dict[str, Any] = {}
    for name in _as_list(content.get("base", [])):
        _update(base, read_mapping(str(folder / name)))
    _update(base, content.get("options", {}))
    cells, defaults = [], resolve({})[1]
    for chosen in _combinations(path, content):
        if any(all(chosen.get(key) == value for key, value in rule.items()) for rule in _excluded(path, content, chosen)):
            continue
        configuration = json.loads(json.dumps(base))
        for key, value in chosen.items():
            _update(configuration, _options_of(path, content, key, value))
        whole = _complete(path, chosen, configuration)
        own = {key: value for key, value in whole.items() if value != defaults.get(key)}
        name = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        cells.append(Cell(chosen, whole, name))
    _check_different(path, cells)
    tasks, items = content.get("tasks", []), content.get("items")
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise SubFitError(f"{path}: tasks must be a list of .jsonl files")
    if items is not None and (not isinstance(items, int) or items < 1):
        raise SubFitError(f"{path}: items is {items!r}; it must be at least 1")
    return Grid(cells, _texts(path, content.get("texts", {})), tasks, items)


def _combinations(path: str, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The values of each cell, before any is excluded."""
    axes, together = (_axes(path, content, key) for key in ("axes", "zip"))
    if len({len(values) for values in together.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in together.items())
        raise SubFitError(f"{path}: the lists of zip must be of one length; {lengths}")
    if axes or together:
        rows = [dict(zip(together, row, strict=True)) for row in zip(*together.values(), strict=True)] or [{}]
        for row in rows:
            for values in itertools.product(*axes.values()):
                yield row | dict(zip(axes, values, strict=True))
    cells = content.get("cells", [])
    if not isinstance(cells, list) or not all(isinstance(cell, dict) and cell for cell in cells):
        raise SubFitError(f"{path}: cells must be a list of mappings of options to values")
    yield from cells
    if not (axes or together or cells):
        raise SubFitError(f"{path}: the grid has no cells; give axes, zip or cells")


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


def _excluded(path: str, content: dict[str, Any], chosen: dict[str, Any]) -> Iterable[dict[str, Any]]:
    rules = content.get("exclude", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
        raise SubFitError(f"{path}: exclude must be a list of mappings of axes to values")
    known = {*content.get("axes", {}), *content.get("zip", {}), *chosen}
    for rule in rules:
        for key in rule:
            if key not in known:
                raise SubFitError(f"{path}: exclude names {key!r}, which is no axis; there are {', '.join(sorted(known))}")
    return rules


def _options_of(path: str, content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The options that a cell's value of an axis sets."""
    if _is_option(key):
        return {key: value}
    labelled = {**content.get("axes", {}), **content.get("zip", {})}.get(key)
    if labelled is None and key == "config":
        return read_mapping(str(Path(path).parent / value))
    if labelled is None:
        raise SubFitError(f"{path}: unknown option {key!r}; options are {', '.join(sorted(OPTIONS))}")
    options = labelled[value] if isinstance(labelled[value], dict) else {}
    result = read_mapping(str(Path(path).parent / options["config"])) if "config" in options else {}
    return {**result, **{name: option for name, option in options.items() if name != "config"}}


def _complete(path: str, chosen: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the defaults, once it is known that it can be run."""
    place = f"{path}, cell {json.dumps(chosen)}"
    if "output" in configuration:
        raise SubFitError(f"{place}: a cell has no output folder")
    if configuration.get("fsdp"):
        raise SubFitError(
            f"{place}: fsdp is for one compression, by processes that work together; those of an ablation do not"
        )
    try:
        return resolve(configuration)[1]
    except SubFitError as error:
        raise SubFitError(f"{place}: {error}") from error


def _texts(path: str, given: Any) -> dict[str, EvaluationData]:
    if not isinstance(given, dict) or not all(isinstance(source, dict) for source in given.values()):
        raise SubFitError(f"{path}: texts must map names to data sources, such as {{story: {{path: story.txt}}}}")
    try:
        texts = {name: EvaluationData(**source) for name, source in given.items()}
        for data in texts.values():
            data.sources()
    except (TypeError, SubFitError) as error:
        raise SubFitError(f"{path}: texts: {error}") from error
    return texts


def _check_different(path: str, cells: list[Cell]) -> None:
    if not cells:
        raise SubFitError(f"{path}: every cell is excluded")
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in seen:
            both = f"{json.dumps(seen[cell.name].values)} and {json.dumps(cell.values)}"
            raise SubFitError(f"{path}: two cells are the same: {both}")
        seen[cell.name] = cell


def _update(options: dict[str, Any], changes: dict[str, Any]) -> None:
    """Sets options in place; a key with dots is one inside another."""
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        if not dot:
            options[first] = _strategy(value) if first in registry.OPTIONS else value
            continue
        inner = options.get(first, DEFAULTS.get(first, {}))
        options[first] = json.loads(json.dumps(_strategy(inner) if first in registry.OPTIONS else inner))
        _update(options[first], {rest: value})


def _strategy(value: Any) -> Any:
    return {"class_path": value} if isinstance(value, str) else value


def _is_option(name: str) -> bool:
    return name.partition(".")[0] in OPTIONS


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
