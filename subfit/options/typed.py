"""Values from plain data, by the types that annotations give: one set of rules for Python, files and the command line."""

import dataclasses
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union, get_args, get_origin

import yaml

from subfit.errors import SubFitError, did_you_mean, shown
from subfit.options.annotations import describe_annotation, fits, hints, is_mapping, is_sequence
from subfit.options.reading import parse
from subfit.options.sources import Text
from subfit.strategy import Strategy

EMPTY = "the value of {} is empty; give one, or leave it out"  # such as that of a variable of the shell that is not set

Make = Callable[[type, Any, str, Any], Any]  # makes a strategy of a type from what is given, at a place, with a default


def typed(hint: Any, value: Any, place: str, make: Make, default: Any = None) -> Any:
    """Returns a value of the type that an annotation says, made from plain data; objects of the type are kept as they are.

    Args:
        hint: the annotation. Classes that extend `Strategy` are made by `make`, dataclasses from mappings; lists, mappings
            and unions are gone through. What is given for `Any`, or for a type that is not known here, is taken as it is.
        value: what is given; a `Text` is read as YAML where no string is wanted.
        place: the option, for messages.
        default: the value if nothing were given, which arguments of a strategy without its name are for.

    Raises:
        SubFitError: if the value does not fit.
    """
    if hint in (Any, object):
        return _untyped(value)
    if isinstance(value, Text):
        value = _from_text(hint, value)
    if not fits(hint, value):
        raise SubFitError(f"{place} is {shown(value)}; it must be {describe_annotation(hint)}")
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _of_union([member for member in inner if fits(member, value)], value, place, make, default)
    if isinstance(hint, type) and issubclass(hint, Strategy):
        return make(hint, value, place, default)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return hint(**typed_arguments(hint, value, place, make))  # type: ignore[operator]  # it is a class
    if is_mapping(origin) and len(inner) == 2:
        return {key: typed(inner[1], item, f"{place}.{key}", make) for key, item in value.items()}
    if is_sequence(origin) and inner:
        made = [typed(inner[0], item, f"{place}[{index}]", make) for index, item in enumerate(value)]
        return tuple(made) if origin is tuple else made
    if hint is float:
        return float(value)
    return os.fspath(value) if hint is str else value


def typed_arguments(what: Any, given: Mapping[str, Any], place: str, make: Make, owner: str = "") -> dict[str, Any]:
    """Returns the arguments of a class or a function, made by their annotations from those that are given.

    Args:
        what: the class or the function.
        given: arguments by name.
        place: the option whose arguments they are, for messages.
        make: see `typed`.
        owner: what has the arguments, for messages; the place, if not given.

    Raises:
        SubFitError: if one is unknown, does not fit, or is missing.
    """
    function = getattr(what, "__init__") if isinstance(what, type) else what  # noqa: B009  # mypy takes a class for an object
    known = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    named = {p.name: p for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known) and function is not object.__init__
    if not open_ended:
        check_known(given, named, owner or place)
    annotations = hints(what if dataclasses.is_dataclass(what) else function)
    made = {}
    for name, value in given.items():
        default = None if name not in named or named[name].default is inspect.Parameter.empty else named[name].default
        made[name] = typed(annotations.get(name, Any), value, f"{place}.{name}" if place else name, make, default)
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in made:
            raise SubFitError(
                f"{owner or place}: {name} is missing; it must be {describe_annotation(annotations.get(name, Any))}"
            )
    return made


def check_fields(given: Any) -> None:
    """Raises SubFitError if a field of a dataclass has a value that its annotation does not allow, or an empty string.

    So that what is made in Python is refused as what is read from a file is.
    """
    annotations = hints(type(given))
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if isinstance(value, str) and not value:
            raise SubFitError(EMPTY.format(field.name))
        if not fits(annotations[field.name], value):
            raise SubFitError(f"{field.name} is {shown(value)}; it must be {describe_annotation(annotations[field.name])}")


def check_known(given: Iterable[str], known: Iterable[str], place: str = "") -> None:
    """Raises SubFitError if a name is not known."""
    known = list(known)
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known)
            before = f"{place}: " if place else ""
            raise SubFitError(f"{before}unknown option {name!r}; {hint}options are {', '.join(known) or 'none'}")


def _of_union(members: list[Any], value: Any, place: str, make: Make, default: Any) -> Any:
    """The value by the first of the types that takes it; if none does, what the first one says."""
    errors = []
    for member in members:
        try:
            return typed(member, value, place, make, default)
        except SubFitError as error:
            errors.append(error)
    raise errors[0]


def _untyped(value: Any) -> Any:
    """A value of any type, with what was typed in it as YAML."""
    if isinstance(value, Text):
        return _from_text(Any, value)
    if isinstance(value, dict):
        return {key: _untyped(item) for key, item in value.items()}
    return [_untyped(item) for item in value] if isinstance(value, list) else value


def _from_text(hint: Any, text: Text) -> Any:
    """What was typed, as YAML if that fits; else as a string."""
    try:
        read = parse(text)
    except yaml.YAMLError:
        return str(text)
    return read if not isinstance(read, str) and fits(hint, read) else str(text)
