"""Keeps the state with the lowest error on held-out data, for every kind of training."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class BestState(Generic[T]):
    """The state with the lowest error so far; the one at the start, which `update` is told of first, counts too.

    Args:
        copy: returns a copy of the present state.

    Attributes:
        state: the best state.
        lowest: its error, None before the first `update`.
    """

    def __init__(self, copy: Callable[[], T]):
        self._copy = copy
        self.state = copy()
        self.lowest: float | None = None

    def update(self, error: float) -> bool:
        """Keeps the present state if its error is the lowest, which NaN never is; returns whether it was kept."""
        if self.lowest is None:
            self.lowest = error
            return False
        better = error < self.lowest
        if better:
            self.lowest, self.state = error, self._copy()
        return better
