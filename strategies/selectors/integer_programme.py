"""The cheapest set of sites under several budgets at once."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.fitting.costs import UNITS, Unit
from subfit.model.submodules import KINDS, Site
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
        for unit, share in (also or {}).items():
            if unit not in UNITS or not 0 <= share < 1:
                units = ", ".join(UNITS)
                raise SubFitError(f"integer_programme: {unit}: {share}; units are {units}, shares from 0 to below 1")
        self.also = also
        self.per_type = per_type

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        sites = list(scores)
        constraints = []
        savings = budget.savings()
        for kinds in [(kind,) for kind in KINDS] if self.per_type else [KINDS]:
            saved = [savings[site] if site.kind in kinds else 0.0 for site in sites]
            constraints.append(_at_least(saved, budget.goal(*kinds)))
        for unit, share in (self.also or {}).items():
            further = budget.savings(unit)
            constraints.append(_at_least([further[site] for site in sites], budget.goal(sparsity=share, unit=unit)))
        cost = np.array([scores[site] for site in sites])
        scale = np.abs(cost).max() or 1.0
        exact = {"mip_rel_gap": 0.0}  # by default it stops within 0.01 % of the optimum
        binary = {"integrality": np.ones(len(sites)), "bounds": Bounds(0, 1)}
        found = milp(cost / scale, constraints=constraints, options=exact, **binary)
        if found.x is None:
            raise SubFitError(f"integer_programme: the budgets cannot be met together: {found.message}")
        return [site for site, chosen in zip(sites, found.x, strict=True) if chosen > 0.5]


def _at_least(saved: list[float], goal: float) -> LinearConstraint:
    """The sum of `saved` over the chosen sites is at least `goal`, up to rounding."""
    scale = max(map(abs, saved), default=0.0) or 1.0
    return LinearConstraint(np.array(saved) / scale, lb=goal / scale * (1 - 1e-9))
