"""The plug-in file of a class, and user errors for code that cannot be imported."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from subfit.errors import SubFitError
from subfit.options import importing

FINDERS = (
    Path(__file__),
    Path(__file__).with_name("finding.py"),
    Path(importing.__file__),
)  # whose lines are not a plug-in's
T = TypeVar("T")


def plugin_file_of(found: type) -> str | None:
    """Returns the plug-in file that a class is from, None if it is from none."""
    return sys.modules[found.__module__].__file__ if found.__module__.startswith(importing.PREFIX) else None


def imported(what: str, load: Callable[[], T]) -> T:
    """Returns what `load` imports; whatever the imported code raises is one line that says where."""
    try:
        return load()
    except SubFitError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
        theirs = [f for f in frames if Path(f.filename) not in FINDERS]
        place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
        if isinstance(error, SyntaxError):
            place = f" ({error.filename}:{error.lineno})"
        raise SubFitError(f"{what} cannot be imported: {type(error).__name__}: {error}{place}") from error
