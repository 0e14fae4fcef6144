"""Reads options from mappings, files, presets and records, and merges them."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from subfit.errors import SubFitError, did_you_mean, missing, shown
from subfit.options.reading import read_mapping
from subfit.strategy import Strategy

PACKAGE = Path(__file__).parents[1]
PRESETS = (PACKAGE / "presets", PACKAGE.parent / "experiments")  # in an installation; beside the source
RECORD = "compression.json"  # of a run, in the folder of the compressed model
UNRECORDED = "unrecorded"  # the key of what stands for an object in a record


class Text(str):
    """A value as it was typed on a command line."""


def presets() -> dict[str, Path]:
    """Returns the file of each preset by its name: those in `experiments/`, and its baselines."""
    folder = next((folder for folder in PRESETS if folder.is_dir()), PRESETS[0])
    return {path.stem: path for path in [*sorted(folder.glob("*.yaml")), *sorted((folder / "baselines").glob("*.yaml"))]}


def describe_preset(path: Path) -> str:
    """Returns the sentence that a preset's comment begins with."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<=[^.]{3}\.)\s(?=[A-Z])", " ".join(comment))[0]


def find_source(name: str, named_in: Iterable[str] = ()) -> Path:
    """Returns the file that a `--config` stands for.

    That is, in this order: a preset of this name; the file; `compression.json` in the folder of a compressed model; a preset
    by its path, such as `best.yaml`, `baselines/puzzle` or `experiments/best.yaml`, where there is no such file.

    Args:
        name: a preset's name, or a path, relative to the folder that the command runs in.
        named_in: files that name it, for the message.

    Raises:
        SubFitError: if there is none.
    """
    known, path = presets(), Path(name)
    if name in known:
        return known[name]
    if path.is_file():
        return path
    if path.is_dir():
        if (path / RECORD).is_file():
            return path / RECORD
        raise SubFitError(f"cannot read the configuration {name}: it is a folder without {RECORD}")
    wanted = name.removeprefix("experiments/").removesuffix(".yaml")
    for stem, preset in known.items():
        if wanted in (stem, f"baselines/{stem}" if preset.parent.name == "baselines" else stem):
            return preset
    available = f"{did_you_mean(wanted, known)}presets are {', '.join(sorted(known))}"
    if not path.suffix and path.name == name:
        raise SubFitError(f"there is no preset and no file {name!r}; {available}")
    raise SubFitError(f"the configuration {missing(name, named_in)}; {available}")


def read_source(name: str, named_in: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the options in a preset, a YAML or JSON file, or the record of a run; see `find_source`.

    Raises:
        SubFitError: if there is none of this name, it cannot be read, or it has options that would be ignored.
    """
    if not isinstance(name, str):
        raise SubFitError(f"{name!r} is no configuration; it must be a preset's name or a file")
    content = read_mapping(str(find_source(name, named_in)))
    recorded = content.pop("configuration", None)
    if not isinstance(recorded, dict):
        return content if recorded is None else {**content, "configuration": recorded}
    beside = content.keys() & recorded.keys() - {"evaluation"} if "selected" in content else content.keys()
    if beside:  # no record of a run has them
        found = ", ".join(map(str, beside))
        raise SubFitError(f"{name} has options beside its `configuration`, {found}; they belong in there")
    return recorded


def unfold(source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with its dotted keys as mappings inside one another, whatever their order.

    A strategy's name and its arguments become one mapping: `ffn_bypass: linear` and `ffn_bypass.ridge: 0.5` are
    `ffn_bypass: {class_path: linear, init_args: {ridge: 0.5}}`. Of two values of one option, that of the longer key wins.

    Raises:
        SubFitError: if a key is no string, or an argument has two values, one of them in `init_args`.
    """
    found: dict[str, Any] = {}
    for key in source:
        if not isinstance(key, str):
            raise SubFitError(f"{key!r} is no option; options are named by strings")
    for key, value in sorted(source.items(), key=lambda item: item[0].count(".")):
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        first = key.partition(".")[0]
        found[first] = _joined(found[first], value) if first in found else value
    return found


def merge(old: Any, new: Any) -> Any:
    """Returns options of which the new ones win.

    Mappings are merged, one into the other, and so are arguments into the strategy that is there; a strategy that is named
    begins with its own defaults; everything else is replaced.
    """
    if not isinstance(new, Mapping) or "class_path" in new:
        return _strategy(new) if isinstance(new, Mapping) else new
    old = as_mapping(old)
    if "class_path" in old:
        old, new = _strategy(old), _strategy(new)
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def unrecorded(path: str) -> dict[str, str]:
    """Returns what stands in a record for an object of Python of which only the path of its class is known."""
    return {UNRECORDED: path}


def check_recorded(value: Any, place: str) -> None:
    """Raises SubFitError if options have in them what stands for an object that a record does not hold."""
    if isinstance(value, Mapping) and UNRECORDED in value:
        what = f"was an object of Python ({value[UNRECORDED]}) that the record cannot hold"
        raise SubFitError(f"{place} {what}; give it again, or something else in its place")
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        check_recorded(item, f"{place}.{key}")


def _joined(one: Any, other: Any) -> Any:
    """Two values of one option in one mapping: a name and arguments, or parts of one mapping; else the later one."""
    if not isinstance(one, Mapping) and not isinstance(other, Mapping):
        return other
    one, other = as_mapping(one), as_mapping(other)
    if "class_path" in one or "class_path" in other:
        one, other = _strategy(one), _strategy(other)
    return {**one, **{key: _joined(one[key], value) if key in one else value for key, value in other.items()}}


def as_mapping(value: Any) -> Mapping[str, Any]:
    """A value as a mapping that others can be merged into; what is no mapping is the name of a strategy."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Strategy):
        return {"class_path": type(value), "init_args": value.arguments()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return {} if value is None else {"class_path": value}


def _strategy(given: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a strategy with all of its arguments in `init_args`."""
    whole = given.get("init_args") or {}
    if not isinstance(whole, Mapping):
        raise SubFitError(f"{given.get('class_path', 'a strategy')}: init_args is {shown(whole)}; it must be a mapping")
    beside = {name: value for name, value in given.items() if name not in ("class_path", "init_args")}
    for name in beside.keys() & whole.keys():
        both = f"{shown(whole[name])} in init_args and {shown(beside[name])} beside it"
        raise SubFitError(f"{given.get('class_path', 'a strategy')}: {name} is given twice, as {both}")
    named = {"class_path": given["class_path"]} if "class_path" in given else {}
    return {**named, "init_args": {**whole, **beside}}
