"""`subfit ablate`."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from subfit.cli.arguments import Parser, add_plugins, document_plugins

if TYPE_CHECKING:  # slow to import, which help does not wait for
    from subfit.ablation.grid import Cell

SHOWN = 20  # rows of the live table
STYLES = {"done": "green", "failed": "red", "running": "yellow", "elsewhere": "dim"}


def run(arguments: list[str]) -> int:
    """Runs `subfit ablate`; the exit code is 1 if a cell has failed."""
    parser = Parser("subfit ablate", "Runs the cells of a grid; started again, goes on where it was.")
    parser.add_argument("grid", help="The grid, a YAML file.")
    parser.add_argument("--output", required=True, help="Folder for rows.jsonl, results.csv and what the cells share.")
    parser.add_argument("--shard", default="1/1", help="i/n: run every n-th cell, beginning with the i-th.")
    parser.add_argument("--wandb", action="store_true", help="Log the cells as the rows of one run of Weights & Biases.")
    parser.add_argument("--json", action="store_true", help="Print the rows as JSON.")
    document_plugins(parser)
    parsed = parser.parse_args(add_plugins(arguments))
    from subfit.ablation.runner import ablate
    from subfit.tracking.wandb_runs import TableLog

    progress = _Progress()
    console = Console(stderr=True)
    with ExitStack() as stack:
        log = stack.enter_context(TableLog(Path(parsed.output).absolute().name)) if parsed.wandb else None

        def report(cell: Cell, status: str, row: dict[str, Any]) -> None:
            progress.report(cell, status, row)
            if log is not None and status == "done":
                log.add(row)

        stack.enter_context(Live(get_renderable=progress.show, console=console, refresh_per_second=1, transient=True))
        rows = ablate(parsed.grid, parsed.output, parsed.shard, report)
    failed = [row for row in rows if row["status"] == "failed"]
    if parsed.json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(_table(rows))
    for row in failed:
        console.print(f"failed: {json.dumps(row['values'])}: {row['error']}", style="red", highlight=False, markup=False)
    return 1 if failed else 0


class _Progress:
    """The state of each cell that was reported, as a table."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self._since = time.monotonic()

    def report(self, cell: Cell, status: str, row: dict[str, Any]) -> None:
        self._since = time.monotonic()
        self._rows.pop(cell.name, None)
        self._rows[cell.name] = {"values": cell.values, **row, "status": status}

    def show(self) -> Group:
        rows = list(self._rows.values())
        done = sum(row["status"] == "done" for row in rows)
        note = f"{done} cells done, {sum(row['status'] == 'failed' for row in rows)} failed"
        return Group(_table(rows[-SHOWN:]), Text(f"{note}; the last change was {time.monotonic() - self._since:.0f} s ago"))


def _table(rows: list[dict[str, Any]]) -> Table:
    """The rows with their values, and what was measured on each text."""
    axes = list(dict.fromkeys(key for row in rows for key in row["values"]))
    texts = list(dict.fromkeys(name for row in rows for name in row.get("texts", {})))
    table = Table(*axes, "status", *(f"{name}: ratio" for name in texts), "agreement", "KL", "net parameters", "seconds")
    for row in rows:
        values = ["" if row["values"].get(axis) is None else str(row["values"][axis]) for axis in axes]
        measured = row.get("texts", {})
        ratios = [f"{measured[name]['perplexity_ratio']:.3f}" if name in measured else "" for name in texts]
        first = next(iter(measured.values()), None)
        size = row.get("size")
        net = f"{size['before']['parameters'] - size['after']['parameters']:,}" if size else ""
        table.add_row(
            *values,
            Text(row["status"], STYLES[row["status"]]),
            *ratios,
            f"{first['agreement']:.1%}" if first else "",
            f"{first['kl']:.3f}" if first else "",
            net,
            f"{row['total_seconds']:.1f}" if "total_seconds" in row else "",
        )
    return table
