"""The layers with the lowest scores, anywhere in depth."""

from subfit.calibration.capture import Calibration
from subfit.fitting.budget import Budget
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector, pools


class WholeLayers(Selector):
    """Takes both sites of the layers whose scores have the lowest sum, contiguous or not (ShortGPT, arXiv 2403.03853)."""

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        (pool,) = pools(scores, "layer")
        return [site for group in budget.fill(pool.ranked(scores), pool.kinds) for site in group]
