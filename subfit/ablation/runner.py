"""Runs the cells of a grid, alone or beside other processes, and goes on where an earlier run was ended."""

import time
import traceback
from collections.abc import Callable
from typing import Any

from subfit.ablation.grid import Cell, read_grid
from subfit.ablation.rows import Rows
from subfit.ablation.shared_state import SharedState
from subfit.errors import SubFitError
from subfit.evaluation.tasks import read_task

WAIT = 2.0  # seconds between looks at cells that other processes are running

Row = dict[str, Any]
Report = Callable[[Cell, str, Row], None]


def ablate(
    path: str, output: str, shard: str = "1/1", report: Report = lambda cell, status, row: None
) -> list[dict[str, Any]]:
    """Runs every cell of a grid that has no finished row in the output folder yet.

    A cell that fails is a row with its error; started again, it is tried again. Any number of processes may run one grid in
    one folder: each cell is run by one of them.

    Args:
        path: the grid file, see `read_grid`.
        output: folder for `rows.jsonl`, `results.csv` and what the cells share (`cache`).
        shard: `i/n`, to run every n-th cell only, beginning with the i-th.
        report: called with a cell, its status ("running", "done", "failed" or "elsewhere") and its row.

    Returns:
        The last row of each cell of the grid, as far as there is one.

    Raises:
        SubFitError: if the grid or the folder cannot be used.
    """
    grid = read_grid(path)
    grid.check_files()
    cells = _shard(grid.cells, shard)
    tasks = [read_task(name, grid.items) for name in grid.tasks]
    evaluation: dict[str, Any] = {"texts": {name: vars(data) for name, data in grid.texts.items()}}
    if tasks:
        evaluation |= {"tasks": grid.tasks, "items": grid.items}
    rows = Rows(output, {"cells": {cell.name: cell.values for cell in grid.cells}, **evaluation})
    started = rows.read()
    left = [cell for cell in cells if not cell.is_row(started.get(cell.name))]
    session = SharedState(rows.folder / "cache", grid.texts, tasks, [cell.configuration for cell in left])
    for cell in cells:
        if cell not in left:
            report(cell, "done", started[cell.name])
    while left:
        elsewhere = []
        for cell in sorted(left, key=lambda cell: _shares(left, cell)):
            with rows.claim(cell.name) as mine:
                row = rows.read().get(cell.name)
                if row is not None and row != started.get(cell.name):
                    report(cell, row["status"], row)
                elif not mine:
                    report(cell, "elsewhere", {})
                    elsewhere.append(cell)
                else:
                    report(cell, "running", {})
                    row = _row(session, cell)
                    rows.append(row)
                    report(cell, row["status"], row)
        left = elsewhere
        if left:
            time.sleep(WAIT)
    rows.write_table()
    found = rows.read()
    return [found[cell.name] for cell in cells if cell.name in found]


def _row(session: SharedState, cell: Cell) -> Row:
    """Runs a cell and returns its row."""
    row: Row = {"cell": cell.name, "values": cell.values}
    start = time.perf_counter()
    try:
        record = session.run(cell.configuration)
    except Exception as error:  # whatever it is, the other cells go on
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        if not isinstance(error, SubFitError):
            row["traceback"] = traceback.format_exc()
    else:
        row |= {"status": "done", **record}
    return {**row, "total_seconds": round(time.perf_counter() - start, 3), "configuration": cell.configuration}


def _shares(cells: list[Cell], cell: Cell) -> tuple[int, ...]:
    """Where the first cell is that has the same model, and calibration data, and scorer, as this one."""
    keys = ("model", "dtype"), ("model", "dtype", "seed", "calibration"), ("model", "dtype", "seed", "calibration", "scorer")
    wanted = [[cell.configuration[key] for key in group] for group in keys]
    return tuple(
        next(i for i, other in enumerate(cells) if [other.configuration[key] for key in group] == values)
        for group, values in zip(keys, wanted, strict=True)
    )


def _shard(cells: list[Cell], shard: str) -> list[Cell]:
    try:
        index, count = map(int, shard.split("/"))
        if not 1 <= index <= count:
            raise ValueError
    except ValueError:
        raise SubFitError(f"shard is {shard!r}; it must be i/n with i from 1 to n, such as 2/4") from None
    return cells[index - 1 :: count]
