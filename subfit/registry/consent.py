"""Code that a configuration names: a file in it runs only if the user names it as well, or allows all of it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from subfit.errors import SubFitError
from subfit.options.sources import read_source
from subfit.registry.finding import is_plugin

FILE = re.compile(r"(.+\.py)(:\w+)?")  # of a strategy or a loss, which may be followed by its name there


def read_configuration(name: str, named_in: Iterable[str] = (), allow_code: bool = False) -> dict[str, Any]:
    """Returns the options in a preset, a file or a record, see `read_source`, once it is known that they may be used.

    Raises:
        SubFitError: if there is none of this name, it cannot be read, or it names code that may not run; see `check_code`.
    """
    content = read_source(name, named_in)
    if not allow_code:
        check_code(content, name)
    return content


def check_code(content: Any, place: str) -> None:
    """Checks that options that were read from a file name no other file of code than those that the user has added.

    Args:
        content: the options, as plain data.
        place: the file that they are from.

    Raises:
        SubFitError: if they do.
    """
    for file in _files_in(content):
        if Path(file).is_file() and not is_plugin(file):
            remedy = f"give --plugins {file}, or --allow_code for all code that is named there (in Python: allow_code=True)"
            raise SubFitError(f"{place} names code that would run, {file}: if you trust it, {remedy}")


def _files_in(content: Any) -> Iterator[str]:
    """The names of files of Python in plain data, those of keys among them."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _files_in(key)
            yield from _files_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from _files_in(value)
    elif isinstance(content, str) and (found := FILE.fullmatch(content)):
        yield found[1]
