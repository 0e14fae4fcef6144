"""The interface of scorers: how needed a site is."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor
from torchmetrics import Metric

from subfit.sites import Site

if TYPE_CHECKING:
    from subfit.calibration import Calibration


class Scorer(Metric):
    """Gives every site a number: the lower, the safer it is to replace.

    Most scorers look at what passes a site, batch by batch: they override `update` and `compute`, and one copy of the
    scorer sees each site. Their states are declared with `add_state` (see torchmetrics), so that many processes give the
    result of one. A scorer that asks more of the calibration, such as the loss with a site replaced, overrides `score`.
    """

    full_state_update = False

    @abstractmethod
    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        """Sees a batch at one site: the stream before it, what its core read, and what it added, (batch, tokens, d)."""

    @abstractmethod
    def compute(self) -> Tensor:
        """Returns the score of the site, one finite number."""

    def score(self, calibration: Calibration) -> dict[Site, float]:
        """Returns the score of every site of `calibration`, from one pass over its tokens."""
        return {site: float(scorer.compute()) for site, scorer in calibration.stream_through(self.clone).items()}
