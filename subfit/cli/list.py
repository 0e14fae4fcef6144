"""`subfit list`."""

import json
from typing import Any

from subfit.cli.arguments import Parser, add_plugins, document_plugins
from subfit.errors import SubFitError
from subfit.options.sources import describe_preset, presets
from subfit.registry import INTERFACES
from subfit.registry.listing import list_strategies


def run(arguments: list[str]) -> int:
    """Runs `subfit list`."""
    parser = Parser("subfit list", "The scorers, selectors, bypasses and presets there are.")
    parser.add_argument("kind", nargs="?", help="scorers, selectors, bypasses or presets; the first three if not given.")
    parser.add_argument("name", nargs="?", help="One of them, to see its whole documentation.")
    parser.add_argument("--json", action="store_true", help="Print as JSON.")
    document_plugins(parser)
    parsed = parser.parse_args(add_plugins(arguments))
    if parsed.kind == "presets":
        _show_presets(parsed.name, parsed.json)
        return 0
    if parsed.kind not in (None, *INTERFACES):
        raise SubFitError(f"unknown kind of strategy {parsed.kind!r}; use {', '.join(INTERFACES)} or presets")
    found = list_strategies(parsed.kind, parsed.name)
    if parsed.json:
        print(json.dumps(found, indent=2))
    elif parsed.name:
        (entry,) = found[parsed.kind]
        print(f"{entry['name']}({', '.join(entry['parameters'])})\n\n{entry['documentation']}")
    else:
        _show_strategies(found)
    return 0


def _show_strategies(found: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the name of each strategy and what it is, its papers and its parameters, by kind."""
    for kind, entries in found.items():
        print(kind)
        for entry in entries:
            print(f"  {entry['name']:<22} {entry['description']}")
            if entry["papers"]:
                print(f"{'':<25}arXiv {', '.join(entry['papers'])}")
            if entry["parameters"]:
                print(f"{'':<25}{', '.join(entry['parameters'])}")
        print()


def _show_presets(name: str | None, as_json: bool) -> None:
    """Prints the name of each preset and what it is; or the file of one."""
    found = presets()
    if name is not None and name not in found:
        raise SubFitError(f"unknown preset {name!r}; available: {', '.join(sorted(found))}")
    if name is not None and not as_json:
        print(found[name].read_text(encoding="utf-8"), end="")
        return
    chosen = [{"name": n, "description": describe_preset(p), "path": str(p)} for n, p in found.items() if name in (None, n)]
    if as_json:
        print(json.dumps({"presets": chosen}, indent=2))
        return
    for entry in chosen:
        print(f"  {entry['name']:<22} {entry['description']}")
