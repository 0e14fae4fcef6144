"""What annotations ask for: as types, in words, and whether a value fits one."""

import dataclasses
import inspect
import math
import os
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from subfit.errors import SubFitError
from subfit.options import declarations
from subfit.strategy import Strategy


def hints(what: Any) -> dict[str, Any]:
    """Returns the annotations of a class or a function as types, those that only a type checker imports included.

    Raises:
        SubFitError: if one names what is not there.
    """
    imported: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(what, localns=imported)
        except NameError as error:
            for source in _sources(what):
                if error.name in source.imports and error.name not in imported:
                    module, name = source.imports[error.name]
                    imported[error.name] = getattr(import_module(module), name)
                    break
            else:
                raise SubFitError(
                    f"{what.__qualname__} ({what.__module__}): its annotations name {error.name!r}, which is not there"
                ) from error


def describe_annotation(hint: Any) -> str:
    """Returns in words what an annotation asks for."""
    origin, inner = get_origin(hint), get_args(hint)
    simple = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        type(None): "null",
        None: "null",
    }
    if hint in simple:
        return simple[hint]
    if origin is Literal:
        return " or ".join(str(value) for value in inner)
    if hint is Callable or origin is Callable:
        return "a function or a class"
    if origin in (Union, types.UnionType):
        return " or ".join(describe_annotation(member) for member in inner)
    if dataclasses.is_dataclass(hint):
        return f"a mapping of {', '.join(f.name for f in dataclasses.fields(hint) if f.init)}"
    if is_mapping(origin or hint):
        return "a mapping"
    if is_sequence(origin or hint):
        return "a list"
    if isinstance(hint, type) and issubclass(hint, Strategy):
        return f"a {hint.__name__}: an object, a name, or a mapping with class_path and init_args"
    return getattr(hint, "__name__", str(hint))


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the type that an annotation says; what is inside lists and mappings is not looked at.

    NaN and infinity are no numbers.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(member, value) for member in inner)
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in inner)
    if hint is Callable or origin is Callable:
        return callable(value)
    if hint in (bool, int, float):
        of_type = isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) == (hint is bool)
        return of_type and (hint is not float or _is_finite(value))
    if hint is str or hint is Path:
        return isinstance(value, str | os.PathLike)
    if is_mapping(origin or hint):
        return isinstance(value, Mapping)
    if is_sequence(origin or hint):
        return isinstance(value, list | tuple)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, hint | Mapping)
    if isinstance(hint, type) and issubclass(hint, Strategy):
        return isinstance(value, Strategy | str | Mapping)
    return hint in (Any, object) or not isinstance(hint, type) or isinstance(value, hint)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is too large for a float
        return False


def is_mapping(hint: Any) -> bool:
    """Whether a class, or the origin of an annotation, is a mapping."""
    return isinstance(hint, type) and issubclass(hint, Mapping)


def is_sequence(hint: Any) -> bool:
    """Whether a class, or the origin of an annotation, is given as a list."""
    return hint in (list, tuple, set, frozenset, Sequence, Collection, Iterable)


def _sources(what: Any) -> Iterator[declarations.SourceFile]:
    """What the files declare that a class, or what it extends, or a function are written in."""
    for part in what.__mro__ if isinstance(what, type) else (what,):
        try:
            file = inspect.getsourcefile(part)
        except TypeError:  # built in
            continue
        if file is not None and Path(file).is_file():
            yield declarations.read(Path(file))
