"""Folders that are complete or not there, whenever the run that writes them is interrupted."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from subfit.errors import SubFitError
from subfit.interruptions import uninterrupted

LOCK = ".lock"  # in a folder that is being written, held by the process that writes it
EARLIER = ".earlier"  # in the same: the folder that is replaced


def check_free(output: str) -> None:
    """Raises SubFitError if `output` cannot become a new folder; to be called before any work.

    What a killed run has left of it, under a hidden name, is removed.
    """
    if "\0" in output:
        raise SubFitError(f"the output folder {output!r} cannot be made: its name has a null character")
    path = Path(output)
    remove_leftovers(path.absolute())
    _check_absent(path)
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SubFitError(f"the output folder {output} cannot be made in {parent}: it is not a writable folder")


@contextmanager
def new_folder(output: str, replace: bool = False) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `output` once the context has ended without an error.

    Until then its name begins with a dot: a folder under the name `output` is complete, whenever the run is interrupted.

    Args:
        replace: whether it takes the place of a folder that is there; this stays until then.

    Raises:
        SubFitError: if the folder exists by now, unless it is to be replaced, or the disk is full.
    """
    path = Path(output).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        try:
            with FileLock(partial / LOCK):
                folder = partial / path.name
                folder.mkdir()
                yield folder
                with uninterrupted():
                    if replace and path.exists():
                        _exchange(folder, path)
                    else:
                        _check_absent(Path(output))
                        folder.rename(path)
        finally:
            with uninterrupted():
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        left = "what was there is kept" if replace else "nothing was left there"
        raise SubFitError(f"cannot write {output}: {error}; {left}") from error


def remove_leftovers(path: Path) -> None:
    """Removes what killed runs have left of a folder that they were writing, once no process holds it any more.

    A run that was killed just while it replaced a folder has put that aside: it is put back.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        lock = FileLock(left / LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # its process is alive, or has just removed it
            continue
        try:
            if not path.exists() and (left / EARLIER).is_dir():
                (left / EARLIER).rename(path)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            lock.release()


def _check_absent(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise SubFitError(f"the output folder {path} exists; give a new one, or remove it")


def _exchange(folder: Path, path: Path) -> None:
    """Puts a folder in the place of another one, which is then beside it; after an error, the other one is back."""
    earlier = folder.with_name(EARLIER)
    try:
        path.rename(earlier)
        folder.rename(path)
    except BaseException:
        if earlier.exists() and not path.exists():
            earlier.rename(path)
        raise
