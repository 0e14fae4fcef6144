"""Finds strategies by name, and makes them: nothing is registered anywhere, a file in `strategies/` is enough.

A name is one of: a file's name in `strategies/<kind>/`, the dotted path of a class, a `.py` file, or the name of an
installed package's entry point in the group `subfit.<kind>`. A file that holds several strategies is followed by `:Class`. A
plug-in file that was added (`--plugins`) is known by its own name, without `.py`, too.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subfit.errors import SubFitError, shown, where
from subfit.options.sources import merge, unrecorded
from subfit.options.typed import typed_arguments
from subfit.registry.consent import check_code, read_configuration
from subfit.registry.finding import INTERFACES, WORDS, add_plugin, find, interface, name_of, names
from subfit.strategy import Strategy

__all__ = [
    "INTERFACES",
    "add_plugin",
    "check_code",
    "find",
    "interface",
    "made",
    "make",
    "name_of",
    "names",
    "plain",
    "read_configuration",
    "spec",
]


def make(kind: str, given: Any) -> Any:
    """Returns a strategy from an object, a name, or a mapping with `class_path` and `init_args`.

    Arguments that are strategies by their annotation are given in the same ways, whatever they are called.

    Raises:
        SubFitError: if the strategy is unknown or does not take these arguments.
    """
    return made(interface(kind), given, WORDS[kind])


def made(hint: type, given: Any, place: str, default: Any = None) -> Any:
    """Returns a strategy that is a `hint`; see `make`.

    Args:
        hint: the interface, or a class that extends it.
        given: an object, a name, or a mapping; one without `class_path` holds arguments of the default.
        place: the option, for messages.
        default: the strategy, in one of these ways, if nothing were given.
    """
    if isinstance(given, Mapping):
        given = merge(default, given)
    if isinstance(given, str):
        given = {"class_path": given}
    if isinstance(given, Mapping):
        given = _from_mapping(hint, given, place)
    if not isinstance(given, hint):
        raise SubFitError(f"{place} is a {type(given).__name__}; it must be a {hint.__name__}")
    return given


def spec(strategy: Strategy) -> dict[str, Any]:
    """Returns a strategy as plain data, of which `make` makes the same: its class, and its arguments, defaults included."""
    return {"class_path": name_of(type(strategy)), "init_args": plain(strategy.arguments())}


def plain(value: Any) -> Any:
    """Returns a value as plain data: strategies as `spec`, dataclasses as mappings, classes and functions as their path.

    Of another object it is not known how to make it again: `sources.unrecorded` stands for it, which `resolve` refuses.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Strategy):
        return spec(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    named = value if hasattr(value, "__qualname__") else type(value)
    path = f"{named.__module__}.{named.__qualname__}"
    return path if _is_at_top_level(value) else unrecorded(path)


def _is_at_top_level(value: Any) -> bool:
    """Whether a value is a class or a function that its module has by its name, so that the path leads to it."""
    name = getattr(value, "__qualname__", None)
    return name is not None and getattr(sys.modules.get(value.__module__), name, None) is value


def _from_mapping(hint: type, given: Mapping[str, Any], place: str) -> Any:
    """The strategy that a mapping with `class_path` and `init_args` describes."""
    named = given.get("class_path")
    if isinstance(named, type):
        found, name = named, named.__name__
    elif isinstance(named, str):
        kind = next(kind for kind in INTERFACES if issubclass(hint, interface(kind)))
        try:
            found, name = find(kind, named), named
        except SubFitError as error:
            raise SubFitError(f"{place}: {error}") from error
    else:
        raise SubFitError(f"{place} is {shown(dict(given))}; it must have a class_path, the name of a {hint.__name__}")
    known = typed_arguments(found, given.get("init_args") or {}, place, made, f"{place} {name}")
    try:
        return found(**known)
    except SubFitError:
        raise
    except Exception as error:
        if found.__module__.startswith("subfit.strategies."):
            raise  # ours: a defect, to be seen in full
        raise SubFitError(f"{place} {name}: {type(error).__name__}: {error} ({where(found, '__init__')})") from error
