"""The cheapest set of sites under several budgets at once."""

from subfit.calibration.capture import Calibration
from subfit.fitting.budget import Budget
from subfit.fitting.costs import Unit
from subfit.fitting.integer_programme import Option, cheapest, check_budgets
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector


class IntegerProgramme(Selector):
    """Minimises the sum of the scores, subject to the budget and to further ones, exactly (as Puzzle, arXiv 2411.19146).

    Scores should be additive costs, such as those of the scorer `kl`. Every budget is a share of what all sites cost
    together, net of what the bypasses cost.

    Args:
        also: further budgets, from the unit to the share to save, such as {kv_bytes: 0.4, latency: 0.25}; the units are
            those of `budget`.
        per_type: whether the run's own budget holds for each type of site by itself.

    Raises:
        SubFitError: if a unit is unknown, or the budgets cannot be met together.
    """

    def __init__(self, also: dict[Unit, float] | None = None, per_type: bool = False) -> None:
        check_budgets(also or {})
        self.also = also
        self.per_type = per_type

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        options = [Option(site, scores[site], budget) for site in scores]
        return [option.site for option in cheapest(options, budget, self.also or {}, self.per_type)]
