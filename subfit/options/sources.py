"""Reads options from mappings, files and presets, and merges them."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from subfit.errors import SubFitError, did_you_mean
from subfit.strategy import Strategy

PACKAGE = Path(__file__).parents[1]
PRESETS = (PACKAGE / "presets", PACKAGE.parent / "experiments")  # in an installation; beside the source


UNRECORDED = "unrecorded"  # the key of what stands for an object in a record


class Text(str):
    """A value as it was typed on a command line."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does, and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """Returns the content of a YAML or JSON text."""
    return yaml.load(text, _Loader)  # which is a safe one


def read_mapping(path: str) -> dict[str, Any]:
    """Returns the content of a YAML or JSON file.

    Raises:
        SubFitError: if it cannot be read, or is no mapping.
    """
    try:
        content = parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SubFitError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SubFitError(f"the configuration {path} must be a mapping of options to values")
    return content


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


def read_source(name: str, folder: Path = Path()) -> dict[str, Any]:
    """Returns the options in a preset, a YAML or JSON file, or the record of a run (`compression.json`).

    A preset's name comes before a file's; a path is always a file.

    Args:
        name: the preset's name, or the path of the file.
        folder: what the path is relative to.

    Raises:
        SubFitError: if there is none of this name, or it cannot be read.
    """
    known = presets()
    path = folder / name
    if name not in known and not path.exists() and not path.suffix and Path(name).name == name:
        raise SubFitError(
            f"there is no preset and no file {name!r}; {did_you_mean(name, known)}presets are {', '.join(sorted(known))}"
        )
    content = read_mapping(str(known.get(name, path)))
    return content["configuration"] if isinstance(content.get("configuration"), dict) else content


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
    old = _as_mapping(old)
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
    one, other = _as_mapping(one), _as_mapping(other)
    if "class_path" in one or "class_path" in other:
        one, other = _strategy(one), _strategy(other)
    return {**one, **{key: _joined(one[key], value) if key in one else value for key, value in other.items()}}


def _as_mapping(value: Any) -> Mapping[str, Any]:
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
        raise SubFitError(f"{given.get('class_path', 'a strategy')}: init_args is {whole!r}; it must be a mapping")
    beside = {name: value for name, value in given.items() if name not in ("class_path", "init_args")}
    for name in beside.keys() & whole.keys():
        both = f"{whole[name]!r} in init_args and {beside[name]!r} beside it"
        raise SubFitError(f"{given.get('class_path', 'a strategy')}: {name} is given twice, as {both}")
    named = {"class_path": given["class_path"]} if "class_path" in given else {}
    return {**named, "init_args": {**whole, **beside}}
