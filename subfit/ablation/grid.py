"""Ablation grids: a YAML file that describes many compressions, as a list of cells."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subfit import registry
from subfit.ablation.axes import cell_sources, combinations
from subfit.calibration.settings import EvaluationData
from subfit.config import Options, configuration, resolve
from subfit.errors import SubFitError, missing, shown
from subfit.options.reading import read_mapping
from subfit.options.typed import typed

KEYS = ("base", "options", "axes", "zip", "cells", "exclude", "texts", "tasks", "limit")


@dataclass(frozen=True)
class Cell:
    """One compression of a grid.

    Attributes:
        values: what sets it apart from the other cells: the value, or the label, of each axis.
        options: all its options.
        configuration: the same as plain data.
        name: depends on the options alone that are not at their defaults, so that options which are new do not change it.
    """

    values: dict[str, Any]
    options: Options
    configuration: dict[str, Any]
    name: str

    def is_done(self, row: dict[str, Any] | None, depends_on: dict[str, Any]) -> bool:
        """Whether a row is the finished one of this cell, with the same options as far as there were any.

        Args:
            depends_on: what such a row depends on beside the options; see `ablation.dependencies` for the rule.
        """
        if row is None or row["status"] != "done" or row["cell"] != self.name or row.get("depends_on") != depends_on:
            return False
        return {**self.configuration, **row["configuration"]} == self.configuration


@dataclass
class Grid:
    """The cells of a grid file, and what each is evaluated on besides its own evaluation windows.

    Attributes:
        path: the file that describes it.
        texts: data sources by name.
        tasks: files of zero-shot tasks.
        limit: number of items of each task, the first ones; all if None.
    """

    path: str
    cells: list[Cell]
    texts: dict[str, EvaluationData]
    tasks: list[str]
    limit: int | None

    def check_files(self) -> None:
        """Raises SubFitError if a text file or a task that a cell needs is missing."""
        for cell in self.cells:
            cell.options.check_files([self.path])
        for data in self.texts.values():
            data.check_files([self.path])
        for name in self.tasks:
            if not Path(name).is_file():
                raise SubFitError(f"task file {missing(name, [self.path])}")

    def as_dict(self) -> dict[str, Any]:
        """Returns what tells this grid from another, as plain data."""
        described: dict[str, Any] = {"cells": {cell.name: cell.values for cell in self.cells}}
        described["texts"] = {name: vars(data) for name, data in self.texts.items()}
        return described | ({"tasks": self.tasks, "limit": self.limit} if self.tasks else {})


def read_grid(path: str, allow_code: bool = False) -> Grid:
    """Reads a grid file.

    Relative paths in it are relative to the folder that the command runs in, as everywhere. One of its keys `axes`, `zip`
    and `cells` is needed:

    - `base`: a preset's name or a configuration file, as for `--config`, or a list of them, of which the later wins.
    - `options`: options that all cells have besides.
    - `axes`: a mapping of options to lists of values; every combination is a cell. An option inside another one is named
      with dots, such as `scorer.init_args.quantile`. An axis that is not named like an option is a mapping of labels to
      options that are set together, among which may be `config`, as `base`. Later axes win.
    - `zip`: as `axes`, but the lists are of one length, and go together.
    - `cells`: a list of mappings of options.
    - `exclude`: a list of mappings; a cell is left out that has all values of one of them.
    - `texts`: further texts to evaluate each cell on: a mapping of names to data sources, as for `evaluation`.
    - `tasks`: files of zero-shot tasks to evaluate each cell on, see `evaluation.tasks.read_task`.
    - `limit`: number of items of each task, the first ones (`items` in older grids); all if not given.

    Args:
        allow_code: whether files of Python that it names may run, beside those added as plug-ins.

    Raises:
        SubFitError: if the file cannot be read, or a cell of it could not be run, or two cells are the same, or it names
            code that may not run.
    """
    content = _read(path)
    if not allow_code:
        registry.check_code(content, path)
    base = content.get("base", [])
    bases = base if isinstance(base, list) else [base]
    shared = [registry.read_configuration(name, [path], allow_code) for name in bases]
    shared.append(_options(path, content))
    defaults = configuration(resolve())
    cells = [
        _cell(path, chosen, [*shared, *cell_sources(path, content, chosen, allow_code)], defaults)
        for chosen in combinations(path, content)
    ]
    _check_different(path, cells)
    return Grid(path, cells, _texts(path, content), _tasks(path, content), _limit(path, content))


def _read(path: str) -> dict[str, Any]:
    """The content of a grid file, whose keys are known."""
    content = read_mapping(path)
    if "items" in content and "limit" not in content:
        content["limit"] = content.pop("items")
    for key in content:
        if key not in KEYS:
            raise SubFitError(f"{path}: unknown key {key!r}; a grid has {', '.join(KEYS)}")
    return content


def _cell(path: str, chosen: dict[str, Any], given: list[dict[str, Any]], defaults: dict[str, Any]) -> Cell:
    """The cell with these values, once it is known that it can be run."""
    place = f"{path}, cell {json.dumps(chosen)}"
    try:
        options = resolve(*given)
    except SubFitError as error:
        raise SubFitError(f"{place}: {error}") from error
    if options.output is not None or options.resume is not None:
        raise SubFitError(f"{place}: a cell has no output folder, and no run to resume")
    if options.fsdp:
        alone = "for one compression, by processes that work together; those of an ablation do not"
        raise SubFitError(f"{place}: fsdp is {alone}")
    plain = configuration(options)
    name = hashlib.sha256(json.dumps(_changed(plain, defaults), sort_keys=True).encode()).hexdigest()[:16]
    return Cell(chosen, options, plain, name)


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values that are not the defaults; of the groups of options, in the same way, those in them."""
    changed = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
    groups = {key: _changed(changed[key], defaults[key]) for key in ("calibration", "evaluation") if key in changed}
    return changed | groups


def _options(path: str, content: dict[str, Any]) -> dict[str, Any]:
    options = content.get("options", {})
    if not isinstance(options, dict):
        raise SubFitError(f"{path}: options is {shown(options)}; it must be a mapping of options to values")
    return options


def _texts(path: str, content: dict[str, Any]) -> dict[str, EvaluationData]:
    given = content.get("texts", {})
    if not isinstance(given, dict) or not all(isinstance(source, dict) for source in given.values()):
        raise SubFitError(f"{path}: texts must map names to data sources, such as {{story: {{path: story.txt}}}}")
    try:
        found = {str(name): typed(EvaluationData, source, str(name), registry.made) for name, source in given.items()}
    except SubFitError as error:
        raise SubFitError(f"{path}: texts: {error}") from error
    for name, data in found.items():
        if data.windows < 1:
            raise SubFitError(f"{path}: texts: {name} has {data.windows} windows; at least 1 is needed")
    return found


def _tasks(path: str, content: dict[str, Any]) -> list[str]:
    tasks = content.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise SubFitError(f"{path}: tasks must be a list of .jsonl files")
    names = [Path(name).stem for name in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SubFitError(f"{path}: two tasks are called {twice[0]!r}")
    return tasks


def _limit(path: str, content: dict[str, Any]) -> int | None:
    limit = content.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise SubFitError(f"{path}: limit is {limit!r}; it must be at least 1")
    return limit


def _check_different(path: str, cells: list[Cell]) -> None:
    if not cells:
        raise SubFitError(f"{path}: every cell is excluded")
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in seen:
            both = f"{json.dumps(seen[cell.name].values)} and {json.dumps(cell.values)}"
            raise SubFitError(f"{path}: two cells are the same: {both}")
        seen[cell.name] = cell
