"""Options of the commands: parsing, configuration files, and strategies by name."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from subfit import registry
from subfit.api import DEFAULTS, Options
from subfit.errors import SubFitError


class Parser(ArgumentParser):
    """Says in one line what is wrong with the options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SubFitError("; ".join(line.strip(" -") for line in str(message).splitlines() if line.strip(" -")))


def compression_parser(program: str, description: str) -> Parser:
    """Returns a parser of the options of a compression."""
    parser = Parser(prog=program, description=description)
    parser.add_argument("--config", action="config", help="YAML file with options; of several, the later wins.")
    parser.add_class_arguments(Options, as_group=False)
    return parser


def with_defaults(arguments: list[str]) -> list[str]:
    """The arguments, importable ones, after those that name the default strategies."""
    return ["--config", json.dumps(importable(DEFAULTS)), *arguments]


def options_from(parser: Parser, parsed: Any) -> Options:
    """The options of a compression, with its strategies as objects."""
    made = parser.instantiate(parsed).as_dict()
    return Options(**{field.name: made[field.name] for field in fields(Options)})


def resolve(configuration: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Returns the options that a configuration describes, as if it were a file given to `subfit compress`.

    Returns:
        The options, and the whole configuration, defaults included, as plain data.

    Raises:
        SubFitError: if an option is unknown, or has a value that it cannot have.
    """
    parser = compression_parser("subfit compress", "")
    parsed = parser.parse_args(with_defaults(["--config", json.dumps(importable(configuration))]))
    return options_from(parser, parsed), configuration_of(parser, parsed)


def add_plugins(parser: ArgumentParser) -> None:
    parser.add_argument("--plugins", type=str | None, metavar="FILE", help="A .py file with strategies; may be repeated.")


def without_plugins(arguments: list[str]) -> list[str]:
    """The arguments without the plug-in files, which are imported: the other options may name what is in them."""
    rest, following = [], iter(arguments)
    for argument in following:
        option, equals, value = argument.partition("=")
        if option == "--plugins":
            registry.add_plugin(value if equals else next(following, ""))
        else:
            rest.append(argument)
    return rest


def importable_arguments(arguments: list[str]) -> list[str]:
    """The arguments with each strategy's name as an importable path, and each configuration file as its content."""
    result = []
    following = iter(arguments)
    for argument in following:
        option, equals, value = argument.partition("=")
        key = option.removeprefix("--").removesuffix(".class_path")
        if option == "--config" or (option.startswith("--") and key in registry.OPTIONS):
            if not equals:
                value = next(following, "")
            value = (
                json.dumps(importable(read_mapping(value)))
                if option == "--config"
                else registry.class_path(registry.OPTIONS[key], value)
            )
            result += [option, value]
        elif option.startswith("--") and key.partition(".")[0] in registry.OPTIONS:
            value = value if equals else next(following, "")
            result += [option, json.dumps(_nested(yaml.safe_load(value))) if "class_path" in value else value]
        else:
            result.append(argument)
    return result


def _nested(value: Any, kind: str = "bypasses") -> Any:
    """The arguments of a strategy, with the name of each strategy in them as an importable path."""
    if isinstance(value, list):
        return [_nested(item, kind) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _nested(item, "scorers" if key == "scorers" else kind) for key, item in value.items()}
    return found | {"class_path": registry.class_path(kind, value["class_path"])} if "class_path" in value else found


def read_mapping(path: str) -> dict[str, Any]:
    """Returns the content of a YAML file.

    Raises:
        SubFitError: if it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SubFitError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SubFitError(f"the configuration {path} must be a mapping of options to values")
    return content


def importable(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration with each strategy's name as an importable path."""
    result = dict(content)
    for key, kind in registry.OPTIONS.items():
        value = content.get(key)
        if isinstance(value, str):
            result[key] = {"class_path": registry.class_path(kind, value)}
        elif isinstance(value, dict) and "class_path" in value:
            path = registry.class_path(kind, value["class_path"])
            result[key] = {**value, "class_path": path, "init_args": _nested(value.get("init_args", {}))}
        if f"{key}.class_path" in content:
            result[f"{key}.class_path"] = registry.class_path(kind, content[f"{key}.class_path"])
    return result


def configuration_of(parser: ArgumentParser, parsed: Any) -> dict[str, Any]:
    """The whole configuration as plain data, which given as --config makes the same run."""
    content = yaml.safe_load(parser.dump(parsed))
    for key in ("json", "config", "plugins"):
        content.pop(key, None)
    return _shortened(content)


def _shortened(value: Any) -> Any:
    """A configuration with the path of each strategy as the name by which any process finds it."""
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: registry.short_name(v) if k == "class_path" else _shortened(v) for k, v in value.items()}
