"""Reads YAML and JSON, safely: mappings, lists, strings, numbers, true, false and null, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from subfit.errors import SubFitError, missing

DEEPEST = 50  # levels of lists and mappings inside one another
MOST = 100_000  # values, each counted as often as an alias repeats it
NOT_READ = ("timestamp", "set", "binary", "omap", "pairs")  # types of YAML 1.1 that no option has
NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$",
    "float": r"[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, and 2026-11-24 and 1:30 as strings, as YAML 1.2 does, and refuses a key that is there twice.

    010 is a string, too, and so refused where a number is wanted: it is 8 in YAML 1.1, and 10 to whoever types it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    tag: made for tag, made in yaml.SafeLoader.yaml_constructors.items() if str(tag).removeprefix(_TAG) not in NOT_READ
}
_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0].removeprefix(_TAG) not in (*NOT_READ, *NUMBERS)]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for name, pattern in NUMBERS.items():
    _Loader.add_implicit_resolver(_TAG + name, re.compile(pattern), list("-+.0123456789"))


def parse(text: str) -> Any:
    """Returns the content of a YAML or JSON text.

    Raises:
        yaml.YAMLError: if it is neither, contains itself, is too deeply nested, or is too large once aliases are replaced.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep") from None
    except (KeyError, ValueError) as error:
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_mapping(path: str) -> dict[str, Any]:
    """Returns the content of a YAML or JSON file.

    Raises:
        SubFitError: if it cannot be read, or is no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = parse(text.replace("\t", " ") if path.endswith(".json") else text)  # YAML does not indent by tabs
    except FileNotFoundError:
        raise SubFitError(f"the configuration {missing(path)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SubFitError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SubFitError(f"the configuration {path} must be a mapping of options to values")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file, such as a record or the configuration of a model.

    Raises:
        SubFitError: if it cannot be read, or is no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SubFitError(f"there is no {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SubFitError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SubFitError(f"cannot read {path}: it must be a mapping")
    return content


def _check_size(node: yaml.Node, seen: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Returns the number of values in a node, and their depth, of which neither may be too large.

    Args:
        seen: what was found for each node; None while it is gone through.
    """
    if id(node) in seen:
        found = seen[id(node)]
        if found is None:
            raise yaml.YAMLError(f"it contains itself {str(node.start_mark).strip()}")
        return found
    seen[id(node)] = None
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inside = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
    sizes = [_check_size(part, seen) for part in inside]
    values, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    if values > MOST:
        raise yaml.YAMLError(f"it holds more than {MOST:,} values")
    if depth > DEEPEST:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
    seen[id(node)] = values, depth
    return values, depth
