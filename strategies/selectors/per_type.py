"""The lowest scores of each type."""

from subfit.selector import Selector
from subfit.sites import KINDS


class PerType(Selector):
    """Takes the lowest-scored Attentions and, independently, the lowest-scored FeedForwards (arXiv 2606.02559)."""

    def select(self, scores, budget, calibration):
        chosen = []
        for kind in KINDS:
            ranked = sorted((site for site in scores if site.kind == kind), key=lambda site: scores[site])
            chosen += ranked[: budget.of(kind)]
        return chosen
