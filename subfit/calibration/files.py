"""The text files that paths, globs and folders stand for."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from subfit.errors import SubFitError, missing

SUFFIXES = (".txt", ".jsonl", ".parquet")  # in any case of letters
KNOWN = "use .txt, .jsonl or .parquet"


def text_files(paths: Iterable[str], named_in: Sequence[str] = ()) -> list[str]:
    """Returns the text files that some paths stand for, each once, however many paths lead to it.

    A glob, in which `**` is any number of folders, stands for the files that it matches, and a folder for those in it and in
    its folders: sorted by name, only those of a known type, and none that is hidden. Relative paths are relative to the
    folder that the command runs in.

    Args:
        paths: files, globs and folders.
        named_in: the configurations or grids that name them, for messages.

    Raises:
        SubFitError: if a path is empty or there is no such file, its type is not known, or a glob or a folder has no text
            file.
    """
    found: dict[Path, str] = {}
    for path in paths:
        for name in _files(path, named_in):
            found.setdefault(Path(name).resolve(), name)
    return list(found.values())


@contextmanager
def opened(name: str) -> Iterator[TextIO]:
    """Opens a text file to read it, as UTF-8, with or without the mark that some editors begin it with.

    Raises:
        SubFitError: if it cannot be read.
    """
    try:
        with open(name, encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise SubFitError(f"text file {name} is not UTF-8: {error}") from error
    except OSError as error:
        raise SubFitError(f"cannot read the text file {name}: {error.strerror}") from error


def suffix_of(name: str) -> str:
    """Returns the suffix of a file's name in lower case."""
    return Path(name).suffix.lower()


def _files(path: str, named_in: Sequence[str]) -> Iterator[str]:
    """The files that one path stands for; what is there is taken for itself, also if its name looks like a glob."""
    if Path(path).is_file():
        if suffix_of(path) not in SUFFIXES:
            raise SubFitError(f"text file {path}: its type is not known; {KNOWN}")
        yield path
        return
    if Path(path).is_dir():
        inside = [file for file in Path(path).rglob("*") if not _is_hidden(file.relative_to(path))]
    elif glob.has_magic(path):
        inside = [Path(name) for name in glob.glob(path, recursive=True)]
    else:
        raise SubFitError(f"text file {missing(path, named_in)}")
    texts = sorted(str(file) for file in inside if file.is_file() and suffix_of(str(file)) in SUFFIXES)
    if not texts:
        raise SubFitError(f"there is no text file in {path} (as seen from {Path.cwd()}); {KNOWN}")
    yield from texts


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
