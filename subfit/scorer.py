"""The interface of scorers: how needed a site is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor
from torchmetrics import Metric

from subfit.sites import Site

if TYPE_CHECKING:
    from subfit.calibration import Calibration


class Scorer(ABC):
    """Gives every site a number: the lower, the safer it is to replace.

    This is the interface of scorers that ask the calibration for what they need, such as the loss with a site replaced.
    Those that look at what passes a site are a `StreamScorer`.
    """

    @abstractmethod
    def score(self, calibration: Calibration) -> dict[Site, float]:
        """Returns the score of every site of `calibration`, a finite number."""


class StreamScorer(Metric, Scorer):
    """A scorer that sees what passes a site, batch by batch; one copy of it sees each site.

    Its states are declared with `add_state` (see torchmetrics), so that many processes give the result of one.
    """

    full_state_update = False

    @abstractmethod
    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        """Sees a batch at one site: the stream before it, what its core read, and what it added, (windows, tokens, d)."""

    @abstractmethod
    def compute(self) -> Tensor:
        """Returns the score of the site, one finite number."""

    def score(self, calibration: Calibration) -> dict[Site, float]:
        """Returns the score of every site, from one pass over the tokens."""
        return {site: float(scorer.compute()) for site, scorer in calibration.stream_through(self.clone).items()}
