"""Errors that the user can mend."""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SubFitError(Exception):
    """Something that the user can mend; the message says what, where, and what would be right."""


def where(strategy: Any, method: str | None = None) -> str:
    """Returns the file and the line of a strategy's class, or of one of its methods."""
    found = strategy if inspect.isclass(strategy) else type(strategy)
    code = getattr(found, method) if method else found
    return f"{inspect.getsourcefile(code)}:{inspect.getsourcelines(code)[1]}"


@contextmanager
def attribute_errors_to(strategy: Any) -> Iterator[None]:
    """Within the context, an error in a plug-in's own code becomes one line that says where it is."""
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
