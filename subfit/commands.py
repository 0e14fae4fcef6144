"""The commands of the command line: their options, and how their results are shown."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from subfit import api, registry
from subfit.data import Data
from subfit.errors import SubFitError


class _Parser(ArgumentParser):
    """Says in one line what is wrong with the options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SubFitError("; ".join(line.strip(" -") for line in str(message).splitlines() if line.strip(" -")))


def compress(arguments: list[str]) -> int:
    """Runs `subfit compress`."""
    parser = _Parser(prog="subfit compress", description="Replaces submodules of a model by small fitted bypasses.")
    parser.add_argument("--config", action="config", help="YAML file with options; of several, the later wins.")
    parser.add_class_arguments(api.Options, as_group=False)
    parser.add_argument("--json", action="store_true", help="Print the record as JSON.")
    _add_plugins(parser)
    wanted = [argument for argument in _without_plugins(arguments) if argument != "--print_config"]
    given = ["--config", json.dumps(_importable(api.DEFAULTS)), *_importable_arguments(wanted)]
    parsed = parser.parse_args(given)
    configuration = _configuration(parser, parsed)
    if "--print_config" in arguments:
        print(yaml.safe_dump(configuration, sort_keys=False), end="")
        return 0
    made = parser.instantiate(parsed).as_dict()
    options = api.Options(**{field.name: made[field.name] for field in fields(api.Options)})
    record = api.run(options, configuration).record
    if parsed.json:
        print(json.dumps(record, indent=2))
    else:
        _show_compression(record, options.output)
    return 0


def evaluate(arguments: list[str]) -> int:
    """Runs `subfit evaluate`."""
    parser = _Parser(prog="subfit evaluate", description="Perplexity of a model, and its agreement with a reference.")
    parser.add_argument("model", help="The model: hub name, folder, .gguf file or smollm2-135m.")
    parser.add_argument("--reference", type=str | None, help="The model to compare with, such as the dense one.")
    parser.add_argument("--data", type=list[str] | str | None, help="Text files; sampled from the reference if not given.")
    parser.add_argument("--windows", type=int, default=16, help="Number of windows.")
    parser.add_argument("--length", type=int, default=512, help="Tokens in a window.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sampling.")
    parser.add_argument("--dtype", type=str, default="auto", help="Data type of the weights.")
    parser.add_argument("--device", type=str, default="auto", help="Torch device.")
    parser.add_argument("--batch_size", type=int, default=4, help="Windows run at once.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Let code in a checkpoint run.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    given = parser.parse_args(arguments).as_dict()
    as_json, files = given.pop("json"), given.pop("data") or []
    data = Data(path=files, windows=given.pop("windows"), length=given.pop("length"))
    result = api.evaluate(given.pop("model"), data=data, **given)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        table = Table("measure", "value", title=result["model"])
        for name, value in result.items():
            table.add_row(
                name,
                f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
            )
        Console().print(table)
    return 0


def list_(arguments: list[str]) -> int:
    """Runs `subfit list`."""
    parser = _Parser(prog="subfit list", description="The scorers, selectors and bypasses there are.")
    parser.add_argument("kind", nargs="?", type=str | None, help="scorers, selectors or bypasses; all if not given.")
    parser.add_argument("name", nargs="?", type=str | None, help="One of them, to see its whole documentation.")
    parser.add_argument("--json", action="store_true", help="Print as JSON.")
    _add_plugins(parser)
    parsed = parser.parse_args(_without_plugins(arguments))
    found = api.list_strategies(parsed.kind, parsed.name)
    if parsed.json:
        print(json.dumps(found, indent=2))
    elif parsed.name:
        (entry,) = found[parsed.kind]
        print(f"{entry['name']}({', '.join(entry['parameters'])})\n\n{entry['documentation']}")
    else:
        for kind, entries in found.items():
            table = Table("name", "what it does", "paper", "parameters", title=kind, title_justify="left", show_lines=True)
            for entry in entries:
                papers, parameters = ("\n".join(entry[key]) for key in ("papers", "parameters"))
                table.add_row(entry["name"], escape(entry["description"]), papers, escape(parameters))
            Console().print(table)
    return 0


def _add_plugins(parser: ArgumentParser) -> None:
    parser.add_argument("--plugins", type=str | None, metavar="FILE", help="A .py file with strategies; may be repeated.")


def _without_plugins(arguments: list[str]) -> list[str]:
    """The arguments without the plug-in files, which are imported: the other options may name what is in them."""
    rest, following = [], iter(arguments)
    for argument in following:
        option, equals, value = argument.partition("=")
        if option == "--plugins":
            registry.add_plugin(value if equals else next(following, ""))
        else:
            rest.append(argument)
    return rest


def _importable_arguments(arguments: list[str]) -> list[str]:
    """The arguments with each strategy's name as an importable path, and each configuration file as its content."""
    result = []
    following = iter(arguments)
    for argument in following:
        option, equals, value = argument.partition("=")
        key = option.removeprefix("--").removesuffix(".class_path")
        if option == "--config" or (option.startswith("--") and key in registry.OPTIONS):
            if not equals:
                value = next(following, "")
            value = json.dumps(_read(value)) if option == "--config" else registry.class_path(registry.OPTIONS[key], value)
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


def _read(path: str) -> dict[str, Any]:
    """The content of a configuration file."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SubFitError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SubFitError(f"the configuration {path} must be a mapping of options to values")
    return _importable(content)


def _importable(content: dict[str, Any]) -> dict[str, Any]:
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


def _configuration(parser: ArgumentParser, parsed: Any) -> dict[str, Any]:
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


def _show_compression(record: dict[str, Any], output: str | None) -> None:
    """Prints what a compression did as tables."""
    size, quality, console = record["size"], record.get("evaluation"), Console()
    before, after = size["before"], size["after"]
    table = Table("", "dense", "compressed", "ratio", title="SubFit")
    rows = [("parameters", before["parameters"], after["parameters"])]
    rows.append(("KV cache, bytes per token", before["kv_bytes_per_token"], after["kv_bytes_per_token"]))
    if quality:
        rows.append(("perplexity", quality["reference_perplexity"], quality["perplexity"]))
    for name, dense, compressed in rows:
        style = ",.2f" if isinstance(dense, float) else ",d"
        table.add_row(name, format(dense, style), format(compressed, style), f"{compressed / dense:.3f}" if dense else "")
    if quality:
        table.add_row("top-1 agreement with dense", "", f"{quality['agreement']:.1%}", "")
        table.add_row("KL divergence from dense, nats", "", f"{quality['kl']:.4f}", "")
    removed, added = size["removed_parameters"], size["added_parameters"]
    table.add_row("added / removed parameters", "", f"{added:,} / {removed:,}", f"{added / removed:.3f}" if removed else "")
    console.print(table)
    stages = Table(*record["seconds"], title="seconds")
    stages.add_row(*(f"{value:.1f}" for value in record["seconds"].values()))
    console.print(stages)
    console.print(f"replaced: {', '.join(record['selected']) or 'nothing'}", highlight=False)
    if output:
        console.print(f"written to {output}, with the picture scores.png", highlight=False)
    sys.stdout.flush()
