"""The results of an ablation in a folder that several processes may write to, and that survives when one is killed."""

import csv
import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from subfit.ablation.row_format import is_row
from subfit.errors import SubFitError
from subfit.options.reading import read_json
from subfit.tracking.atomic import whole_file
from subfit.tracking.records import check_format, flat

ROWS = "rows.jsonl"
logger = logging.getLogger(__name__)


class Rows:
    """One row for each run of a cell, in `rows.jsonl`; the last row of a cell counts.

    Args:
        folder: where; it is made if it does not exist.
        grid: what the rows belong to, as plain data, see `Grid.as_dict`; it may have more cells than earlier.

    Raises:
        SubFitError: if the folder holds the rows of another grid, or something else.
    """

    def __init__(self, folder: str | Path, grid: Any):
        self.folder = Path(folder)
        self._path = self.folder / ROWS
        description = self.folder / "grid.json"
        try:
            if _other_files(self.folder) and not description.exists():  # which is there before anything else of ours is
                raise SubFitError(f"the folder {folder} holds something else than an ablation; give another one")
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            with self._lock("folder"):
                earlier = read_json(description) if description.exists() else {}
                grid = json.loads(json.dumps(grid))
                if earlier and (why := _difference(earlier, grid)):
                    raise SubFitError(f"the folder {folder} holds the rows of another grid: {why}; give another folder")
                if earlier != grid:
                    write_text(description, json.dumps(grid, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise SubFitError(f"cannot write to the folder {folder}: {error}") from error

    def read(self) -> dict[str, dict[str, Any]]:
        """Returns the last row of each cell, by its name."""
        return read_rows(self.folder)

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row, whole or not at all.

        Raises:
            SubFitError: if it cannot be written.
        """
        line = json.dumps(row) + "\n"
        try:
            with self._lock("rows"), open(self._path, "a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)  # what a killed process left
                file.seek(0, os.SEEK_END)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SubFitError(f"cannot add a row to {self._path}: {error}") from error

    @contextmanager
    def claim(self, cell: str) -> Iterator[bool]:
        """Yields whether the cell is this process's for as long as the context lasts; a killed one loses it."""
        lock = self._lock(cell)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def write_table(self) -> None:
        """Writes the last row of each cell to `results.csv`, with a column for each value, named with dots."""
        rows = [flat(row) for row in self.read().values()]
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        with self._lock("folder"):
            write_text(self.folder / "results.csv", buffer.getvalue())

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.folder / "locks" / f"{name}.lock")


def _other_files(folder: Path) -> list[str]:
    """The files in a folder, but those that an ablation has there before its `grid.json`."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return [name for name in names if name != "locks" and not name.startswith(".grid.json.")]


def _difference(earlier: dict[str, Any], grid: dict[str, Any]) -> str | None:
    """Why the rows of an earlier grid are not those of a grid; None if they are, as this has the same cells, or more."""
    for key in sorted({*earlier, *grid} - {"cells"}):
        if earlier.get(key) != grid.get(key):
            return f"its {key} are others"
    if not isinstance(earlier.get("cells"), dict):
        return "its grid.json has no cells"
    gone = [values for name, values in earlier["cells"].items() if grid["cells"].get(name) != values]
    return f"the cell {json.dumps(gone[0])} is gone, or has other options" if gone else None


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the last row of each cell, by its name; a line that a killed process left unfinished is none.

    Raises:
        SubFitError: if a row was written by a newer version of SubFit.
    """
    path = folder / ROWS
    if not path.exists():
        return {}
    rows = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        row = _parsed(line)
        if isinstance(row, dict) and isinstance(row.get("format_version"), int):
            check_format(row, f"{path}:{number}")
        if is_row(row):
            rows[row["cell"]] = row
        else:
            logger.warning("%s:%d: this line is damaged, and is left out", path, number)
    return rows


def _parsed(line: bytes) -> Any:
    """What is written in a line; None if it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it."""
    try:
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SubFitError(f"cannot write {path}: {error}") from error
