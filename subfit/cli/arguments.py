"""Command-line arguments, as all commands take them."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml

from subfit import registry
from subfit.errors import SubFitError
from subfit.options.reading import parse
from subfit.options.sources import Text
from subfit.options.typed import EMPTY


class Parser(argparse.ArgumentParser):
    """Raises a user error of one line for wrong arguments.

    Args:
        commands: examples that end the help.
    """

    def __init__(self, program: str, description: str, commands: Sequence[str] = ()):
        super().__init__(
            prog=program,
            description=description,
            epilog=examples(commands) if commands else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise SubFitError(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]  # of its overloads
        """Parses arguments, of which none may be empty."""
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            if value == "" or isinstance(value, list) and "" in value:
                self.error(EMPTY.format(name))
        return parsed


def examples(commands: Sequence[str]) -> str:
    """Returns the examples that end a help."""
    return "\n".join(["Examples:", *(f"  {command}" for command in commands)])


def take(arguments: list[str], wanted: Callable[[str], bool]) -> tuple[list[tuple[str, Any]], list[str]]:
    """Returns the wanted options, each with its value, a `Text` or a mapping, and all other arguments.

    Raises:
        SubFitError: if an option has no value.
    """
    taken, rest, following = [], [], iter(arguments)
    for argument in following:
        option, equals, value = argument.partition("=")
        if not (option.startswith("--") and wanted(option[2:])):
            rest.append(argument)
            continue
        if not equals:
            value = next(following, "--")
            if value.startswith("--"):
                raise SubFitError(f"{option} needs a value")
        if not value:
            raise SubFitError(EMPTY.format(option))
        taken.append((option[2:], _value(value)))
    return taken, rest


def add_plugins(arguments: list[str]) -> list[str]:
    """Makes the strategies of the plug-in files known, which other arguments may name; returns these."""
    files, rest = take(arguments, "plugins".__eq__)
    for _, file in files:
        registry.add_plugin(str(file))
    return rest


def document_plugins(parser: Parser) -> None:
    """Adds the option of `add_plugins` to the help."""
    parser.add_argument("--plugins", metavar="FILE", help="A .py file with strategies; may be repeated.")


def _value(text: str) -> Text | dict[str, Any]:
    """What was typed; in braces, the mapping that it is."""
    try:
        found = parse(text) if text.startswith("{") else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else Text(text)
