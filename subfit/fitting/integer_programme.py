"""The cheapest choice under several budgets at once, exactly: an integer programme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from subfit.bypass import Bypass
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.fitting.costs import UNITS, Unit
from subfit.model.submodules import KINDS, Site


@dataclass(frozen=True)
class Option:
    """One way to replace a site.

    Attributes:
        site: the site.
        cost: what it costs, in a measure that adds up over sites.
        budget: tells what it saves.
        bypass: what takes the site's place; None for what the run's options say.
    """

    site: Site
    cost: float
    budget: Budget
    bypass: Bypass | None = None


def check_budgets(budgets: Mapping[Unit, float]) -> None:
    """Raises SubFitError if a unit is unknown, or a share is out of range."""
    for unit, share in budgets.items():
        if unit not in UNITS or not 0 <= share < 1:
            raise SubFitError(f"also: {unit}: {share}; units are {', '.join(UNITS)}, shares from 0 to below 1")


def cheapest(options: Sequence[Option], budget: Budget, also: Mapping[Unit, float], per_type: bool) -> list[Option]:
    """Returns the options with the least sum of costs, no two of them of one site, that save what the budgets ask for.

    Args:
        options: to choose from.
        budget: the run's own.
        also: further budgets, from the unit to the share of what all sites cost together.
        per_type: whether the run's own budget holds for each type of site by itself.

    Raises:
        SubFitError: if the budgets cannot be met together.
    """
    constraints = [_at_most_one(options)]
    for kinds in [(kind,) for kind in KINDS] if per_type else [KINDS]:
        saved = [gain if option.site.kind in kinds else 0.0 for option, gain in zip(options, gains(options), strict=True)]
        constraints.append(_at_least(saved, budget.goal(*kinds)))
    for unit, share in also.items():
        constraints.append(_at_least(gains(options, unit), budget.goal(sparsity=share, unit=unit)))
    cost = np.array([option.cost for option in options])
    scale = np.abs(cost).max() or 1.0
    exact = {"mip_rel_gap": 0.0}  # by default it stops within 0.01 % of the optimum
    binary = {"integrality": np.ones(len(options)), "bounds": Bounds(0, 1)}
    found = milp(cost / scale, constraints=constraints, options=exact, **binary)
    if found.x is None:
        raise SubFitError(f"the budgets cannot be met together: {found.message}")
    return [option for option, chosen in zip(options, found.x, strict=True) if chosen > 0.5]


def gains(options: Sequence[Option], unit: Unit | None = None) -> list[float]:
    """Returns what each option saves, in a unit, by default the budget's."""
    budgets = {id(option.budget): option.budget for option in options}
    savings = {key: budget.savings(unit) for key, budget in budgets.items()}
    return [savings[id(option.budget)][option.site] for option in options]


def _at_most_one(options: Sequence[Option]) -> LinearConstraint:
    """No two options of one site."""
    sites = list(dict.fromkeys(option.site for option in options))
    return LinearConstraint(np.array([[option.site == site for option in options] for site in sites], dtype=float), ub=1.0)


def _at_least(saved: list[float], goal: float) -> LinearConstraint:
    """The sum of `saved` over the chosen options is at least `goal`, up to rounding."""
    scale = max(map(abs, saved), default=0.0) or 1.0
    return LinearConstraint(np.array(saved) / scale, lb=goal / scale * (1 - 1e-9))
