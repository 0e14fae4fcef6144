"""`subfit list`."""

import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from subfit import api
from subfit.config import Parser, add_plugins, without_plugins


def run(arguments: list[str]) -> int:
    """Runs `subfit list`."""
    parser = Parser(prog="subfit list", description="The scorers, selectors and bypasses there are.")
    parser.add_argument("kind", nargs="?", type=str | None, help="scorers, selectors or bypasses; all if not given.")
    parser.add_argument("name", nargs="?", type=str | None, help="One of them, to see its whole documentation.")
    parser.add_argument("--json", action="store_true", help="Print as JSON.")
    add_plugins(parser)
    parsed = parser.parse_args(without_plugins(arguments))
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
