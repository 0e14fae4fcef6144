"""The interface of scorers: how needed a submodule is.

The simplest scorer is a mean over tokens. As `update_norm.py`, this is a whole one, used by `--scorer update_norm.py`:

```python
from torch import Tensor

from subfit import TokenMean


class UpdateNorm(TokenMean):
    \"\"\"Mean norm of what the branch adds to the residual stream.\"\"\"

    def each(self, h: Tensor, y: Tensor) -> Tensor:
        return y.norm(dim=-1)
```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from subfit.errors import SubFitError, attribute_errors_to, where
from subfit.model.activations import Activations, Branch
from subfit.model.submodules import Site
from subfit.strategy import Strategy

if TYPE_CHECKING:
    from subfit.calibration.capture import Calibration

Scores = dict[Site, float]


class Scorer(Strategy, ABC):
    """Gives every site a number: the lower, the safer it is to replace.

    This is the interface of scorers that ask the calibration for what they need, such as the loss with a site replaced.
    Those that look at what passes a site derive from `StreamScorer`, and means over tokens from `TokenMean`.

    ```python
    from subfit import Scorer
    from subfit.calibration.capture import Calibration
    from subfit.model.submodules import Site


    class Depth(Scorer):
        \"\"\"Later layers are safer to replace.\"\"\"

        def score(self, calibration: Calibration) -> dict[Site, float]:
            return {site: -float(site.layer) for site in calibration.sites}
    ```
    """

    @abstractmethod
    def score(self, calibration: Calibration) -> Scores:
        """Returns the score of every site of `calibration`, a finite number."""


class StreamScorer(Metric, Scorer):
    """A scorer that sees what passes a site, batch by batch; one copy of it sees each site.

    Its states are declared with `add_state` (see torchmetrics), so that many processes give the result of one.

    ```python
    import torch
    from torch import Tensor

    from subfit import StreamScorer


    class LargestUpdate(StreamScorer):
        \"\"\"The largest norm that the branch adds to any token; FeedForwards count `ffn_weight` times.\"\"\"

        peak: Tensor

        def __init__(self, ffn_weight: float = 1.0) -> None:
            super().__init__()
            self.ffn_weight = ffn_weight
            self.add_state("peak", torch.tensor(0.0), dist_reduce_fx="max")

        def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
            self.peak = torch.maximum(self.peak, y.float().norm(dim=-1).max())

        def compute(self) -> Tensor:
            return self.peak * (self.ffn_weight if self.branch.site.kind == "ffn" else 1.0)
    ```

    Attributes:
        branch: the site that this copy sees, and its module; set before the first batch.
    """

    full_state_update = False
    branch: Branch

    @abstractmethod
    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        """Sees a batch at one site: the stream before it, what its core read, and what it added, (windows, tokens, d)."""

    @abstractmethod
    def compute(self) -> Tensor:
        """Returns the score of the site, one finite number, ()."""

    def score(self, calibration: Calibration) -> Scores:
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
    streaming = [scorer for scorer in scorers if isinstance(scorer, StreamScorer)]
    shared = iter(_score_in_one_pass(calibration, streaming))
    found = []
    for scorer in scorers:
        if isinstance(scorer, StreamScorer):
            scores = next(shared)
        else:
            with attribute_errors_to(scorer):
                scores = scorer.score(calibration)
        _check_scores(calibration, scorer, scores)
        found.append(scores)
    return found


def _score_in_one_pass(calibration: Calibration, scorers: Sequence[StreamScorer]) -> list[Scores]:
    """The scores by scorers that look at what passes the sites."""
    if not scorers:
        return []
    copies = {site: [scorer.clone().to(calibration.device) for scorer in scorers] for site in calibration.sites}
    for site, its in copies.items():
        for copy in its:
            copy.branch = calibration.branch(site)

    def visit(site: Site, seen: Activations) -> None:
        for copy in copies[site]:
            copy.update(seen.h, seen.x, seen.added)

    with ExitStack() as stack:
        for scorer in scorers:
            stack.enter_context(attribute_errors_to(scorer))
        calibration.watch_sites(calibration.sites, "scoring", visit)
        return [{site: float(its[i].compute()) for site, its in copies.items()} for i in range(len(scorers))]


def _check_scores(calibration: Calibration, scorer: Scorer, scores: Any) -> None:
    for site in calibration.sites:
        score = scores.get(site) if isinstance(scores, dict) else None
        if not isinstance(score, int | float) or not isfinite(score):
            place = where(scorer, "compute" if isinstance(scorer, StreamScorer) else "score")
            raise SubFitError(f"the scorer gives {score} for {site.name}; every site needs a finite number ({place})")
