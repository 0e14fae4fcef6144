"""`subfit ablate`."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subfit.cli.arguments import Parser, add_plugins, document_plugins
from subfit.cli.cells import CellProgress, show_rows
from subfit.progress import show_above

if TYPE_CHECKING:  # slow to import, which help does not wait for
    from subfit.ablation.grid import Cell

EXAMPLES = (
    "subfit ablate grid.yaml --output runs",
    "subfit ablate grid.yaml --output runs --shard 1/2",
    "subfit report runs",
)


def run(arguments: list[str]) -> int:
    """Runs `subfit ablate`; the exit code is 1 if a cell has failed."""
    text = "Runs the cells of a grid; started again, goes on where it was."
    parser = Parser("subfit ablate", text, EXAMPLES)
    parser.add_argument("grid", help="The grid, a YAML file.")
    parser.add_argument("--output", required=True, help="Folder for rows.jsonl, results.csv and what the cells share.")
    parser.add_argument("--shard", default="1/1", help="i/n: run every n-th cell, beginning with the i-th [1/1].")
    parser.add_argument("--wandb", action="store_true", help="Log the cells as the rows of one run of Weights & Biases.")
    parser.add_argument("--json", action="store_true", help="Print the rows as JSON.")
    document_plugins(parser)
    parser.add_argument("--allow_code", action="store_true", help="Let all .py files that the grid names run.")
    parsed = parser.parse_args(add_plugins(arguments))
    from subfit.ablation.runner import ablate
    from subfit.tracking.wandb_runs import TableLog

    progress = CellProgress()
    with ExitStack() as stack:
        log = stack.enter_context(TableLog(Path(parsed.output).absolute().name)) if parsed.wandb else None

        def report(cell: Cell, status: str, row: dict[str, Any]) -> None:
            progress.report(cell, status, row)
            if log is not None and status == "done":
                log.add(row)

        stack.enter_context(show_above(progress.render))
        rows = ablate(parsed.grid, parsed.output, parsed.shard, report, parsed.allow_code)
    failed = [row for row in rows if row["status"] == "failed"]
    if parsed.json:
        print(json.dumps(rows, indent=2))
    else:
        show_rows(rows, parsed.output)
    for row in failed:
        print(f"failed: {json.dumps(row['values'])}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0
