"""The lowest scores of each type."""

from subfit.calibration.capture import Calibration
from subfit.fitting.budget import Budget
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector, pools


class PerType(Selector):
    """Takes the lowest-scored Attentions, other mixers and FeedForwards, each type by itself (arXiv 2606.02559)."""

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        chosen = []
        for pool in pools(scores, "submodule"):
            chosen += budget.fill(pool.ranked(scores), pool.kinds)
        return [site for group in chosen for site in group]
