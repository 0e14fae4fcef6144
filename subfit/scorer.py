"""The interface of scorers: how needed a site is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from subfit.errors import SubFitError, attribute_errors_to, where
from subfit.model.submodules import Site
from subfit.strategy import Strategy

if TYPE_CHECKING:
    from subfit.calibration.capture import Calibration

Scores = dict[Site, float]


class Scorer(Strategy, ABC):
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
        return score_sites(calibration, self)


class TokenMean(StreamScorer):
    """A score that is a mean over tokens."""

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "tokens"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def each(self, h: Tensor, y: Tensor) -> Tensor:
        """Returns the value of each token, (windows, tokens), from the stream and what was added, both in float32."""

    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        values = self.each(h.float(), y.float())
        self.total += values.sum(dtype=torch.float64)
        self.tokens += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.tokens


def score_sites(calibration: Calibration, scorer: Scorer) -> Scores:
    """Returns the score of every site.

    Raises:
        SubFitError: if one has none, or one that is not a finite number.
    """
    return score_together(calibration, [scorer])[0]


def score_together(calibration: Calibration, scorers: Sequence[Scorer]) -> list[Scores]:
    """Returns the scores of every site by each scorer; those that look at what passes the sites share one pass.

    Raises:
        SubFitError: if a site has no score, or one that is not a finite number.
    """
    found: dict[int, Any] = {}
    looking: dict[str, Any] = {str(i): scorer for i, scorer in enumerate(scorers) if isinstance(scorer, StreamScorer)}
    if looking:
        together = MetricCollection(looking, compute_groups=False)
        with ExitStack() as stack:
            for scorer in looking.values():
                stack.enter_context(attribute_errors_to(scorer))
            scores = {site: its.compute() for site, its in calibration.stream_through(together.clone).items()}
        found = {int(i): {site: float(scores[site][i]) for site in scores} for i in looking}
    for i, scorer in enumerate(scorers):
        if i not in found:
            with attribute_errors_to(scorer):
                found[i] = scorer.score(calibration)
        _check_scores(calibration, scorer, found[i])
    return [found[i] for i in range(len(scorers))]


def _check_scores(calibration: Calibration, scorer: Scorer, scores: Any) -> None:
    for site in calibration.sites:
        score = scores.get(site) if isinstance(scores, dict) else None
        if not isinstance(score, int | float) or not isfinite(score):
            place = where(scorer, "compute" if isinstance(scorer, StreamScorer) else "score")
            raise SubFitError(f"the scorer gives {score} for {site.name}; every site needs a finite number ({place})")
