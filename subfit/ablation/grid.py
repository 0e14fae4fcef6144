"""Ablation grids: a YAML file that describes many compressions, as a list of cells."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subfit import config
from subfit.calibration.data import EvaluationData
from subfit.config import read_mapping, resolve
from subfit.errors import SubFitError
from subfit.options.sources import presets

KEYS = ("base", "options", "axes", "zip", "cells", "exclude", "texts", "tasks", "items")
OPTIONS = frozenset(config.OPTIONS) - {"output"}


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

    - `base`: a preset's name or a configuration file, or a list of them, of which the later wins; relative to the grid file,
      as all files here.
    - `options`: options that all cells have besides.
    - `axes`: a mapping of options to lists of values; every combination is a cell. An option inside another one is named
      with dots, such as `scorer.init_args.quantile`. An axis that is not named like an option is a mapping of labels to
      options that are set together, among which may be `config`, a preset's name or a configuration file. Later axes win.
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
    base = [_source(folder, name) for name in _as_list(content.get("base", []))] + [content.get("options", {})]
    cells, defaults = [], config.configuration(resolve())
    for chosen in _combinations(path, content):
        if any(all(chosen.get(key) == value for key, value in rule.items()) for rule in _excluded(path, content, chosen)):
            continue
        whole = _complete(path, chosen, [*base, *_sources_of(path, content, chosen)])
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


def _sources_of(path: str, content: dict[str, Any], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """The options that the values of a cell set, of which the later win; options that follow each other are one source."""
    folder, sources = Path(path).parent, list[dict[str, Any]]()
    together: dict[str, Any] = {}
    labelled = {**content.get("axes", {}), **content.get("zip", {})}
    for key, value in chosen.items():
        if _is_option(key):
            together[key] = value
            continue
        options = {"config": value} if key == "config" and key not in labelled else labelled.get(key, {}).get(value)
        if key != "config" and key not in labelled:
            raise SubFitError(f"{path}: unknown option {key!r}; options are {', '.join(sorted(OPTIONS))}")
        sources, together = [*sources, together], {}
        if isinstance(options, dict):
            sources += [_source(folder, options["config"])] if "config" in options else []
            sources.append({name: option for name, option in options.items() if name != "config"})
    return [*sources, together]


def _source(folder: Path, name: str) -> dict[str, Any]:
    """The options in a preset, or in a file beside the grid."""
    return read_mapping(str(presets().get(name, folder / name)))


def _complete(path: str, chosen: dict[str, Any], sources: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration with the defaults, once it is known that it can be run."""
    place = f"{path}, cell {json.dumps(chosen)}"
    if any("output" in source for source in sources):
        raise SubFitError(f"{place}: a cell has no output folder")
    try:
        options = resolve(*sources)
    except SubFitError as error:
        raise SubFitError(f"{place}: {error}") from error
    if options.fsdp:
        raise SubFitError(
            f"{place}: fsdp is for one compression, by processes that work together; those of an ablation do not"
        )
    return config.configuration(options)


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


def _is_option(name: str) -> bool:
    return name.partition(".")[0] in OPTIONS


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
