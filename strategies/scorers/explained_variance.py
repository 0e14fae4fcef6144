"""What a bypass cannot explain of what a site adds."""

from math import isnan
from typing import Any

from subfit import registry
from subfit.errors import SubFitError
from subfit.fitting.sequential import fit_each
from subfit.scorer import Scorer


class ExplainedVariance(Scorer):
    """Unexplained variance of a bypass fitted to the dense stream; a site that adds nothing has none.

        score = 1 - R^2

    It is dominated by massive activations where there are any, and does not see how much a site adds. One site's bypass is
    held at a time.

    Args:
        bypass: what is fitted, made of linear pieces: a name, or a mapping with `class_path` and `init_args`.
    """

    def __init__(self, bypass: str | dict[str, Any] = "linear"):
        self.bypass = registry.make("bypasses", bypass)

    def score(self, calibration):
        scores = {}

        def done(replacement):
            if replacement.explained is None:
                name = type(self.bypass).__name__
                raise SubFitError(f"explained_variance: {name} is not a fitted linear map; use linear or low_rank, say")
            scores[replacement.site] = 0.0 if isnan(replacement.explained) else 1 - replacement.explained

        fit_each(calibration, dict.fromkeys(calibration.sites, self.bypass), done)
        return scores
