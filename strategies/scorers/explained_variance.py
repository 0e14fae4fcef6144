"""What a bypass cannot explain of what a site adds."""

from math import isnan

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.one_shot import fit_each
from subfit.model.replacing import BypassReplacement
from subfit.scorer import Scorer, Scores
from subfit.strategies.bypasses.linear import Linear


class ExplainedVariance(Scorer):
    """Unexplained variance of a bypass fitted to the dense stream; a site that adds nothing has none.

        score = 1 - R^2

    It is dominated by massive activations where there are any, and does not see how much a site adds. One site's bypass is
    held at a time.

    Args:
        bypass: what is fitted, made of linear pieces.
    """

    def __init__(self, bypass: Bypass = Linear()) -> None:
        self.bypass = bypass

    def score(self, calibration: Calibration) -> Scores:
        scores = {}

        def done(replacement: BypassReplacement) -> None:
            if replacement.explained is None:
                name = type(self.bypass).__name__
                raise SubFitError(f"explained_variance: {name} is not a fitted linear map; use linear or low_rank, say")
            scores[replacement.site] = 0.0 if isnan(replacement.explained) else 1 - replacement.explained

        fit_each(calibration, dict.fromkeys(calibration.sites, self.bypass), done)
        return scores
