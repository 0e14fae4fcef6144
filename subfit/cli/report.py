"""`subfit report`."""

import json

from subfit.cli.arguments import Parser

EXAMPLES = ("subfit report runs", "subfit report runs more-runs --output page")


def run(arguments: list[str]) -> int:
    """Runs `subfit report`."""
    parser = Parser("subfit report", "One page, with pictures, on what ablations have found.", EXAMPLES)
    parser.add_argument("folders", nargs="+", help="Output folders of subfit ablate.")
    parser.add_argument("--output", help="Folder to write to; that of the first ablation if not given.")
    parser.add_argument("--json", action="store_true", help="Print the paths of the page and of its table as JSON.")
    parsed = parser.parse_args(arguments)
    from subfit.ablation import report  # slow to import, which help does not wait for
    from subfit.progress import Stage

    output = parsed.output or parsed.folders[0]
    with Stage(f"writing the report on {', '.join(parsed.folders)}"):
        page = report.report(parsed.folders, output)
    table = page.with_name("table.md")
    if parsed.json:
        print(json.dumps({"page": str(page), "table": str(table)}, indent=2))
    else:
        print(f"{page}\n{table}")
    return 0
