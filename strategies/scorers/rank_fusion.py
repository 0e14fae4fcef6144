"""Several scorers fused into one ranking."""

from math import fsum

from scipy.stats import rankdata

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.model.submodules import KINDS
from subfit.scorer import Scorer, Scores, score_together


class RankFusion(Scorer):
    """Weighted mean of the ranks that other scorers give, within each type (after Strategic Fusion, arXiv 2501.03273).

        score = weighted mean over scorers of  rank,  from 0 for the lowest of its type to 1 for the highest

    Equal scores share the mean of their ranks; the order of the scorers does not matter. The paper fuses by linear
    regression or a random forest; a mean of ranks needs nothing to learn from.

    Args:
        scorers: what is fused.
        weights: of each scorer in the mean; equal if not given.

    Raises:
        SubFitError: if there is no scorer, or the weights do not fit, or a scorer does not give every site a finite number.
    """

    def __init__(self, scorers: list[Scorer], weights: list[float] | None = None) -> None:
        weights = [1.0] * len(scorers) if weights is None else weights
        if not scorers:
            raise SubFitError("rank_fusion: scorers is empty; give at least one")
        if len(weights) != len(scorers) or min(weights) < 0 or sum(weights) == 0:
            raise SubFitError(f"rank_fusion: weights is {weights}; give each of the {len(scorers)} scorers one, at least 0")
        self.scorers = scorers
        self.weights = weights

    def score(self, calibration: Calibration) -> Scores:
        given = score_together(calibration, self.scorers)
        fused = dict.fromkeys(calibration.sites, 0.0)
        for kind in KINDS:
            sites = [site for site in fused if site.kind == kind]
            beaten = [rankdata([scores[site] for site in sites]) - 1 for scores in given]
            for index, site in enumerate(sites):
                total = fsum(weight * ranks[index] for weight, ranks in zip(self.weights, beaten, strict=True))
                fused[site] = total / (fsum(self.weights) * max(len(sites) - 1, 1))
        return fused
