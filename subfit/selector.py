"""The interface of selectors: which sites to replace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from subfit.budget import Budget
from subfit.sites import Site

if TYPE_CHECKING:
    from subfit.calibration import Calibration


class Selector(ABC):
    """Chooses the sites to replace, given their scores and how many may go."""

    @abstractmethod
    def select(self, scores: dict[Site, float], budget: Budget, calibration: Calibration) -> list[Site]:
        """Returns the sites to replace.

        Args:
            scores: the score of every site, lower is safer to replace.
            budget: how many sites of each type to replace.
            calibration: the model and its calibration tokens, for selectors that search.
        """
