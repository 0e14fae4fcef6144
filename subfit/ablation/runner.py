"""Runs the cells of a grid, alone or beside other processes, and goes on where an earlier run was ended."""

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from subfit.ablation.dependencies import dependencies
from subfit.ablation.grid import Cell, Grid, read_grid
from subfit.ablation.rows import Rows
from subfit.ablation.shared_state import SharedState
from subfit.errors import SubFitError
from subfit.evaluation.tasks import read_task
from subfit.interruptions import not_lost
from subfit.progress import Stage
from subfit.tracking.provenance import differing, processor, provenance

TRAINING = "training windows"  # beside the options of a cell
WAIT = 2.0  # seconds between looks at cells that other processes are running

Row = dict[str, Any]
Report = Callable[[Cell, str, Row], None]

logger = logging.getLogger(__name__)


def ablate(
    path: str,
    output: str,
    shard: str = "1/1",
    report: Report = lambda cell, status, row: None,
    allow_code: bool = False,
) -> list[dict[str, Any]]:
    """Runs every cell of a grid that has no finished row in the output folder yet.

    A cell that fails is a row with its error; started again, it is tried again, and so is one whose row was made with other
    versions or files, see `ablation.dependencies`. Any number of processes may run one grid in one folder: each cell is run
    by one of them.

    Args:
        path, allow_code: the grid file, and whether code that it names may run; see `read_grid`.
        output: folder for `rows.jsonl`, `results.csv` and what the cells share (`cache`).
        shard: `i/n`, to run every n-th cell only, beginning with the i-th.
        report: called with a cell, its status ("waiting", "running", "done", "failed" or "elsewhere") and its row. Every
            cell is reported at the start: those that are finished already as "done", the others as "waiting".

    Returns:
        The last row of each cell of the grid, as far as there is one.

    Raises:
        SubFitError: if the grid or the folder cannot be used.
    """
    grid = read_grid(path, allow_code)
    grid.check_files()
    cells = _shard(grid.cells, shard)
    tasks = [read_task(name, grid.limit) for name in grid.tasks]
    rows = Rows(output, grid.as_dict())
    started = rows.read()
    depends_on = {cell.name: _depends_on(grid, cell) for cell in cells}
    left = [cell for cell in cells if not cell.is_done(started.get(cell.name), depends_on[cell.name])]
    _warn_of_other_rows([(started[cell.name], depends_on[cell.name]) for cell in left if cell.name in started])
    finished = {cell.name for cell in cells if cell not in left}
    if said := differing([*(started[name].get("processor") for name in finished), *([processor()] if left else [])]):
        logger.warning("finished cells are kept; %s", said)
    for cell in cells:
        report(cell, *(("done", started[cell.name]) if cell.name in finished else ("waiting", {})))
    state = SharedState(rows.folder / "cache", grid.texts, tasks, [cell.options for cell in left])

    def run(cell: Cell) -> Row:
        with Stage(f"cell {len(finished) + 1} of {len(cells)}", line=False):
            return _row(state, cell, depends_on[cell.name])

    while left:
        for cell in sorted(left, key=_by_what_is_shared(left)):
            if _settle(rows, cell, started, run, report):
                finished.add(cell.name)
        left = [cell for cell in left if cell.name not in finished]
        if left:
            time.sleep(WAIT)
    rows.write_table()
    found = rows.read()
    return [found[cell.name] for cell in cells if cell.name in found]


def _settle(rows: Rows, cell: Cell, started: dict[str, Row], run: Callable[[Cell], Row], report: Report) -> bool:
    """Runs a cell unless another process has, since the start, or is about to; returns whether its row is there."""
    with rows.claim(cell.name) as mine:
        row = rows.read().get(cell.name)
        if row is not None and row != started.get(cell.name):
            report(cell, row["status"], row)
            return True
        if not mine:
            report(cell, "elsewhere", {})
            return False
        report(cell, "running", {})
        row = run(cell)
        rows.append(row)
        report(cell, row["status"], row)
        return True


def _row(state: SharedState, cell: Cell, depends_on: dict[str, Any]) -> Row:
    """Runs a cell and returns its row."""
    row: Row = {"cell": cell.name, "values": cell.values}
    start = time.perf_counter()
    try:
        with not_lost():
            record = state.run(cell.options)
    except Exception as error:  # whatever it is, the other cells go on
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}", **provenance()}
        if not isinstance(error, SubFitError):
            row["traceback"] = traceback.format_exc()
    else:
        row |= {"status": "done", **record}
    seconds = round(time.perf_counter() - start, 3)
    return {**row, "total_seconds": seconds, "depends_on": depends_on, "configuration": cell.configuration}


def _depends_on(grid: Grid, cell: Cell) -> dict[str, Any]:
    return dependencies(cell.options, grid.texts.values(), grid.tasks)


def _warn_of_other_rows(pairs: list[tuple[Row, dict[str, Any]]]) -> None:
    """Warns that finished rows do not count any more: a line for each reason.

    Args:
        pairs: each finished row, and what it would have to depend on.
    """
    reasons = Counter[str]()
    for row, wanted in pairs:
        found = row.get("depends_on", {})
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        if row["status"] == "done" and changed:
            why = f"changed since: {', '.join(changed)}" if found else "an older subfit did not write what they depend on"
            reasons[why] += 1
    for reason, count in reasons.items():
        logger.warning("%d finished cells are run again (%s)", count, reason)


def _by_what_is_shared(cells: list[Cell]) -> Callable[[Cell], tuple[int, ...]]:
    """The sort key that puts cells of one model, then of the same tokens, then of one scorer, next to each other."""
    model, tokens = ("model", "dtype"), ("seed", "calibration")
    groups = (model, (*model, *tokens), (*model, *tokens, TRAINING), (*model, *tokens, TRAINING, "scorer"))
    values = {cell.name: {**cell.configuration, TRAINING: cell.options.recipe.training_windows} for cell in cells}
    keys = {name: [[its[key] for key in group] for group in groups] for name, its in values.items()}
    firsts = [[keys[cell.name][i] for cell in cells] for i in range(len(groups))]
    return lambda cell: tuple(first.index(key) for first, key in zip(firsts, keys[cell.name], strict=True))


def _shard(cells: list[Cell], shard: str) -> list[Cell]:
    try:
        index, count = map(int, shard.split("/"))
        if not 1 <= index <= count:
            raise ValueError
    except ValueError:
        raise SubFitError(f"shard is {shard!r}; it must be i/n with i from 1 to n, such as 2/4") from None
    return cells[index - 1 :: count]
