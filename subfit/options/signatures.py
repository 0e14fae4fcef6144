"""Makes objects of Lightning's and torch's classes from plain data, checked against the signatures of the classes."""

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from subfit.errors import SubFitError


class _Parser(ArgumentParser):
    """Raises a user error of one line for a wrong value."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        reasons = re.findall(r"^    - (.*)", str(message), flags=re.MULTILINE)  # one for each type that it could have had
        lines = [line for line in reasons if "NoneType" not in line] or re.sub(r"^Parser key .*", "", message).splitlines()
        raise SubFitError("; ".join(line.strip() for line in lines if line.strip()))


def parse_value(kind: Any, value: Any, place: str) -> Any:
    """Returns a value that is checked to fit a type, as jsonargparse keeps it: classes are named, and not yet made.

    Args:
        kind: a type annotation. A class, or a callable that returns one, is given by `class_path` and `init_args`.
        value: plain data, with objects in it as they are.
        place: the option that the value is of, for the message.

    Raises:
        SubFitError: if the value does not fit.
    """
    return _parsed(kind, value, place)[1]["value"]


def instantiate(kind: Any, value: Any, place: str) -> Any:
    """Returns the object that a value stands for; see `parse_value`.

    Raises:
        SubFitError: if the value does not fit the type.
    """
    parser, parsed = _parsed(kind, value, place)
    return parser.instantiate(parsed)["value"]


def _parsed(kind: Any, value: Any, place: str) -> tuple[_Parser, Namespace]:
    parser = _Parser()
    parser.add_argument("--value", type=kind)
    try:
        return parser, parser.parse_object({"value": _copied(value)}, defaults=False)
    except SubFitError as error:
        raise SubFitError(f"{place}: {error}") from None


def _copied(value: Any) -> Any:
    """A value of which the parser may change the lists and the mappings; what is in them is the same."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
