"""How a model is refused that cannot be run in the ways that a compression runs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from subfit.errors import SubFitError, is_lack_of_memory, summary


def refusal(model: Any, what: str, reason: str) -> SubFitError:
    """Returns the error that says how a model was run, and what came of it."""
    return SubFitError(f"{type(model).__name__} cannot be compressed: run {what}, {reason}")


@contextmanager
def refused_if_failing(model: Any, what: str) -> Iterator[None]:
    """Within the context, what a model raises is said to be why it is refused; `what` says how it is run.

    Raises:
        SubFitError: if the model raises an error, but for a lack of memory.
    """
    try:
        yield
    except SubFitError:
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        raise refusal(model, what, f"it fails with {type(error).__name__}: {summary(error)}") from error
