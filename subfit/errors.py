"""User errors, and which of a plug-in's errors are user errors."""

import difflib
import inspect
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST_VALUE = 200  # characters of a value that a message shows
LONGEST = 500  # characters of what an error of a library says, which may have the content of a file in it


class SubFitError(Exception):
    """A user error. The message is one line: what is wrong, where, and what would be right."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the known name that is closest to a wrong one as a question, with a space after it; "" if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def missing(path: str | Path, named_in: Iterable[str] = ()) -> str:
    """Returns what to say of a path that is not there.

    Args:
        path: as it was given; relative paths are relative to the folder that the command runs in, wherever they are given.
        named_in: the configurations or grids that name it, beside which it may be.
    """
    if Path(path).is_absolute():
        return f"{path} does not exist"
    said = f"{path} does not exist (paths are relative to the folder that the command runs in, {Path.cwd()})"
    beside = next((found for name in named_in if (found := Path(name).parent / path).exists()), None)
    return said if beside is None else f"{said}; there is {beside}: give this path, or run the command from there"


def summary(error: Exception) -> str:
    """Returns the first line of what an error of a library says, or all of it where more than that line is needed.

    Of a long one, its two ends.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return shortened(" ".join(lines) if lines[0].endswith(":") else lines[0], LONGEST)


def shortened(text: str, longest: int) -> str:
    """Returns a text, or the two ends of one that has more characters than `longest`."""
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or of torch says that memory could not be allocated."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, for a GPU alone
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def shown(value: Any) -> str:
    """Returns a value as one line of a message."""
    line = " ".join(repr(value).split())
    return line if len(line) <= LONGEST_VALUE else f"{line[:LONGEST_VALUE]} ..."


def where(strategy: Any, method: str | None = None) -> str:
    """Returns the file and the line of a strategy's class, or of one of its methods."""
    found = strategy if inspect.isclass(strategy) else type(strategy)
    code = getattr(found, method) if method else found
    return f"{inspect.getsourcefile(code)}:{inspect.getsourcelines(code)[1]}"


@contextmanager
def attribute_errors_to(strategy: Any) -> Iterator[None]:
    """Within the context, an error raised in a plug-in's own code becomes a user error that names the file and the line."""
    try:
        yield
    except SubFitError:
        raise
    except Exception as error:
        file = inspect.getsourcefile(type(strategy))
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if not lines or type(strategy).__module__.startswith("subfit.strategies."):
            raise  # ours: a defect, to be seen in full
        name = type(strategy).__name__
        raise SubFitError(f"{name} ({file}:{lines[-1]}): {type(error).__name__}: {error}") from error
