"""Several scorers fused into one ranking."""

from typing import Any

from subfit import registry
from subfit.errors import SubFitError
from subfit.scorer import Scorer


class RankFusion(Scorer):
    """Weighted mean of the ranks that other scorers give, within each type (after Strategic Fusion, arXiv 2501.03273).

        score = mean over scorers of  rank,  from 0 for the lowest of its type to 1 for the highest

    Equal scores share the mean of their ranks. The paper learns how to fuse; a mean of ranks needs nothing to learn from.

    Args:
        scorers: what is fused: names, or mappings with `class_path` and `init_args`.
        weights: of each scorer in the mean; equal if not given.

    Raises:
        SubFitError: if there is no scorer, or the weights do not fit.
    """

    def __init__(self, scorers: list[str | dict[str, Any]], weights: list[float] | None = None):
        weights = [1.0] * len(scorers) if weights is None else weights
        if not scorers:
            raise SubFitError("rank_fusion: scorers is empty; give at least one")
        if len(weights) != len(scorers) or min(weights) < 0 or sum(weights) == 0:
            raise SubFitError(f"rank_fusion: weights is {weights}; give each of the {len(scorers)} scorers one, at least 0")
        self.scorers = [registry.make("scorers", scorer) for scorer in scorers]
        self.weights = weights

    def score(self, calibration):
        fused = dict.fromkeys(calibration.sites, 0.0)
        for scorer, weight in zip(self.scorers, self.weights, strict=True):
            scores = scorer.score(calibration)
            for site in fused:
                rivals = [scores[other] for other in fused if other.kind == site.kind and other != site]
                beaten = sum((rival < scores[site]) + (rival == scores[site]) / 2 for rival in rivals)
                fused[site] += weight / sum(self.weights) * beaten / max(len(rivals), 1)
        return fused
