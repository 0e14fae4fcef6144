"""The cells of an ablation, as `subfit ablate` shows them: while they run, and at the end."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from subfit.ablation.measures import first_text, net_parameters, ratio
from subfit.cli.tables import fit_table, show_table
from subfit.progress import duration, is_on_terminal, is_shown

if TYPE_CHECKING:  # slow to import, which help does not wait for
    from subfit.ablation.grid import Cell

SHOWN = 20  # rows of a table
BESIDE = 8  # lines of a terminal for what is not a row of the live table
STYLES = {"done": "green", "failed": "red", "running": "yellow", "elsewhere": "dim"}

Row = dict[str, Any]


class CellProgress:
    """What became of each cell that was reported: a table where there is a terminal, otherwise a line for each cell."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}  # by the name of the cell; what has changed last is last
        self._seconds: list[float] = []  # of the cells that this process has run
        self._as_lines = is_shown() and not is_on_terminal()

    def report(self, cell: Cell, status: str, row: Row) -> None:
        """Sees the status of a cell; see `ablation.runner.ablate`."""
        before = self._rows.pop(cell.name, {}).get("status")
        found = {"values": cell.values, **row, "status": status}
        self._rows[cell.name] = found
        if before == "running":
            self._seconds.append(row["total_seconds"])
        if self._as_lines and status != before:
            self._print(found, status, before)

    def render(self) -> RenderableType:
        """Returns what a terminal shows: the cells that have changed last, and how many there are of each status.

        It is called in a thread of its own, and so goes through copies of what `report` changes.
        """
        console = Console(stderr=True)
        rows = [row for row in list(self._rows.values()) if row["status"] != "waiting"]
        latest = rows[-SHOWN:]
        while True:  # a narrow terminal has several lines for a row
            table = fit_table("", *_table(latest), console, names=_names(latest))
            if len(latest) <= 1 or len(console.render_lines(table)) <= console.height - BESIDE:
                return Group(table, Text(self._summary()))
            latest = latest[1:]

    def _print(self, row: Row, status: str, before: str | None) -> None:
        """A line for a cell that has ended, or that another process runs."""
        ended = len(self._rows) - self._left()
        if status in ("done", "failed") and before is not None:
            parts = [f"[{ended}/{len(self._rows)}] {_named(row)}: {_measured(row)}", *self._remaining()]
            print(", ".join(parts), file=sys.stderr, flush=True)
        elif status == "elsewhere":
            print(f"{_named(row)}: another process runs it", file=sys.stderr, flush=True)

    def _left(self) -> int:
        return sum(row["status"] not in ("done", "failed") for row in list(self._rows.values()))

    def _remaining(self) -> list[str]:
        """The time that the other cells will take at the pace so far, if there are others and it is known."""
        left = self._left()
        return [f"{duration(left * sum(self._seconds) / len(self._seconds))} left"] if left and self._seconds else []

    def _summary(self) -> str:
        failed = sum(row["status"] == "failed" for row in list(self._rows.values()))
        counts = f"{len(self._rows) - self._left()} of {len(self._rows)} cells finished, {failed} of them failed"
        return ", ".join([counts, *self._remaining()])


def show_rows(rows: list[Row], output: str) -> None:
    """Prints the rows of an ablation, the best if they are many, and what to do next."""
    done = [row for row in rows if row.get("texts")]
    shown, note = rows, ""
    if len(rows) > SHOWN:
        shown = sorted(done, key=ratio)[:SHOWN]
        note = f"The {len(shown)} lowest ratios of {len(rows)} cells. "
    better = "A lower ratio (compressed over dense perplexity) and KL are better, and a higher agreement."
    show_table(f"{len(rows)} cells", *_table(shown), names=_names(shown), note=note + better if done else note)
    print(f"all cells, with all that was measured: {output}/results.csv")
    if done:
        print(f"next:\n  subfit report {shlex.quote(output)}")


def _table(rows: list[Row]) -> tuple[list[str], list[list[str | Text]]]:
    """The columns and the cells: the values, and what was measured on each text."""
    axes = _axes(rows)
    texts = list(dict.fromkeys(name for row in rows for name in row.get("texts", {})))
    ratios = [f"ratio, {name}" for name in texts]
    columns = [*axes, "status", *ratios, "agreement", "KL, nats", "parameters out", "seconds"]
    return columns, [_cells(row, axes, texts) for row in rows]


def _cells(row: Row, axes: list[str], texts: list[str]) -> list[str | Text]:
    measured = row.get("texts", {})
    first = first_text(row) if measured else None
    return [
        *(_value(row["values"].get(axis)) for axis in axes),
        Text(row["status"], STYLES[row["status"]]),
        *(f"{measured[name]['perplexity_ratio']:.3f}" if name in measured else "" for name in texts),
        f"{first['agreement']:.1%}" if first else "",
        f"{first['kl']:.4f}" if first else "",
        f"{net_parameters(row):,}" if "size" in row else "",
        f"{row['total_seconds']:.1f}" if "total_seconds" in row else "",
    ]


def _axes(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row["values"]))


def _names(rows: list[Row]) -> int:
    """The number of columns that name a row, the status among them."""
    return len(_axes(rows)) + 1


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _named(row: Row) -> str:
    return ", ".join(f"{axis}={_value(value)}" for axis, value in row["values"].items())


def _measured(row: Row) -> str:
    """What was measured of a finished cell, or why it failed, and its seconds."""
    took = duration(row["total_seconds"])
    if row["status"] == "failed":
        return f"failed, {took}: {row['error']}"
    texts = row["texts"]
    parts = [f"ratio {text['perplexity_ratio']:.3f} ({name})" for name, text in texts.items()]
    if texts:
        parts.append(f"agreement {first_text(row)['agreement']:.1%}")
    return ", ".join([*parts, f"{net_parameters(row):,} parameters out", took])
