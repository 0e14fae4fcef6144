"""`subfit list`."""

import json
from typing import Any

from subfit.cli.arguments import Parser, add_plugins, document_plugins
from subfit.errors import SubFitError
from subfit.options.sources import describe_preset, presets
from subfit.registry import INTERFACES
from subfit.registry.finding import WORDS
from subfit.registry.listing import list_strategies

KINDS = (*INTERFACES, "presets")
EXAMPLES = ("subfit list", "subfit list scorers kl", "subfit list bypasses --details", "subfit list presets best")

Entry = dict[str, Any]


def run(arguments: list[str]) -> int:
    """Runs `subfit list`."""
    parser = Parser("subfit list", "The scorers, selectors, bypasses and presets there are, a line for each.", EXAMPLES)
    parser.add_argument("kind", nargs="?", help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}; all of them if not given.")
    parser.add_argument("name", nargs="?", help="One of them, to see what it does, its paper and its options.")
    parser.add_argument("--details", action="store_true", help="The same of all.")
    parser.add_argument("--json", action="store_true", help="Print as JSON.")
    document_plugins(parser)
    parsed = parser.parse_args(add_plugins(arguments))
    if parsed.kind not in (None, *KINDS):
        raise SubFitError(f"unknown kind of strategy {parsed.kind!r}; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    found: dict[str, list[Entry]] = {}
    if parsed.kind != "presets":
        found |= list_strategies(parsed.kind, parsed.name)
    if parsed.kind in (None, "presets"):
        found["presets"] = _presets(parsed.name)
    if parsed.json:
        print(json.dumps(found, indent=2))
    elif parsed.name or parsed.details:
        print("\n\n\n".join(_detailed(kind, entry) for kind, entries in found.items() for entry in entries))
    else:
        _show_lines(found)
    return 0


def _show_lines(found: dict[str, list[Entry]]) -> None:
    """Prints a line for each entry, by kind; the presets of related methods by themselves."""
    groups = {kind: entries for kind, entries in found.items() if kind != "presets"}
    for entry in found.get("presets", []):
        groups.setdefault(f"presets{', related methods' if entry['baseline'] else ''}", []).append(entry)
    width = max(len(entry["name"]) for entries in groups.values() for entry in entries)
    blocks = []
    for group, entries in groups.items():
        blocks.append("\n".join([group, *(f"  {e['name']:<{width}}  {e['description']}" for e in entries)]))
    print("\n\n".join(blocks))


def _detailed(kind: str, entry: Entry) -> str:
    """What an entry does, its papers and its options; of a preset, its file."""
    if kind == "presets":
        return f"{entry['path']}\n\n{entry['content'].rstrip()}"
    documentation, _, _ = (entry["documentation"] or entry["description"]).partition("\n\nArgs:\n")
    parts = [f"{entry['name']} ({WORDS[kind]})", documentation]
    if entry["options"]:
        parts.append("\n".join(["Options:", *(line for option in entry["options"] for line in _option(option))]))
    if entry["papers"]:
        parts.append("\n".join(f"https://arxiv.org/abs/{paper}" for paper in entry["papers"]))
    return "\n\n".join(parts)


def _option(option: dict[str, str | None]) -> list[str]:
    """An option: its name, type and default, and what it is."""
    default = f" = {option['default']}" if option["default"] is not None else ", required"
    lines = [f"  {option['name']}: {option['type'] or 'any'}{default}"]
    return [*lines, f"      {option['description']}"] if option["description"] else lines


def _presets(name: str | None) -> list[Entry]:
    """All presets, or the one of this name.

    Raises:
        SubFitError: if there is none of this name.
    """
    found = presets()
    if name is not None and name not in found:
        raise SubFitError(f"unknown preset {name!r}; available: {', '.join(sorted(found))}")
    return [
        {
            "name": one,
            "description": describe_preset(path),
            "baseline": path.parent.name == "baselines",
            "path": str(path),
            "content": path.read_text(encoding="utf-8"),
        }
        for one, path in found.items()
        if name in (None, one)
    ]
