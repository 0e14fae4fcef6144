"""What a sparsity of 25 % means: that share of the submodules of each type, or of what they cost in another unit."""

import math
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate

from subfit.bypass import Substitute
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.costs import Unit, bypass_costs, check_unit, site_costs
from subfit.model.submodules import KINDS, TITLES, Kind, Site

ROUNDING = 1e-9  # relative error of a sum of savings


class Budget:
    """How much to take out of a model.

    In submodules, the paper's budget (arXiv 2606.02559): round(sparsity * n) of the n sites of each type, halves rounded
    up. In another unit: at least that share of what the sites of each type cost, net of what takes their places.

    Args:
        calibration: the model and its sites.
        substitutes: what would take the places of the sites of each kind.
        sparsity: the share to take out, in [0, 1).
        unit: see `fitting.costs.site_costs`.

    Raises:
        SubFitError: if `sparsity` is out of range, or there is no such unit.
    """

    def __init__(
        self, calibration: Calibration, substitutes: Mapping[Kind, Substitute], sparsity: float, unit: Unit = "submodules"
    ):
        check_sparsity(sparsity)
        check_unit(unit)
        self._calibration = calibration
        self._substitutes = substitutes
        self.sparsity = sparsity
        self.unit = unit

    def with_substitutes(self, substitutes: Mapping[Kind, Substitute]) -> "Budget":
        """Returns the same budget for other substitutes, of one kind or of both."""
        return Budget(self._calibration, substitutes, self.sparsity, self.unit)

    def savings(self, unit: Unit | None = None) -> dict[Site, float]:
        """Returns what replacing each site that has a substitute saves in a unit, by default the budget's, net of it."""
        unit = unit or self.unit
        gross = site_costs(self._calibration, unit)
        added = bypass_costs(self._calibration, self._substitutes, unit)
        return {site: gross[site] - cost for site, cost in added.items()}

    def goal(self, *kinds: Kind, sparsity: float | None = None, unit: Unit | None = None) -> float:
        """Returns how much must be saved on sites of these kinds, by default all, in a unit, by default the budget's."""
        share, unit = self.sparsity if sparsity is None else sparsity, unit or self.unit
        gross = site_costs(self._calibration, unit)
        totals = [sum(cost for site, cost in gross.items() if site.kind == kind) for kind in kinds or KINDS]
        return sum(math.floor(share * total + 0.5) if unit == "submodules" else share * total for total in totals)

    def fill(self, ranked: Iterable[tuple[Site, ...]], kinds: Collection[Kind], part: float = 1.0) -> list[tuple[Site, ...]]:
        """Takes groups of sites in the order of `ranked` until the goal for these kinds is reached.

        Groups that save nothing are passed over.

        Args:
            ranked: groups of sites of these kinds, the safest first.
            kinds: whose goal.
            part: share of the goal to come as near to as possible; the whole of it is reached at least.

        Raises:
            SubFitError: if all groups together do not reach the goal.
        """
        savings, goal = self.savings(), part * self.goal(*kinds)
        gains = {group: sum(savings[site] for site in group) for group in ranked}
        groups = [group for group, gain in gains.items() if gain > 0]
        saved = [0.0, *accumulate(gains[group] for group in groups)]  # by the first groups, as many as the index says
        if part < 1:
            count = sum(before + gains[group] / 2 <= goal for before, group in zip(saved, groups, strict=False))
        else:
            count = next((n for n, total in enumerate(saved) if total >= goal * (1 - ROUNDING)), -1)
        if count < 0:
            raise self._cannot_be_reached(kinds, saved[-1], goal)
        return groups[:count]

    def _cannot_be_reached(self, kinds: Collection[Kind], saved: float, goal: float) -> SubFitError:
        what = " and ".join(f"{TITLES[kind]}s" for kind in kinds)
        return SubFitError(
            f"a sparsity of {self.sparsity} cannot be reached: all {what} that may be replaced save {saved:.4g} "
            f"{self.unit}, and {goal:.4g} are wanted"
        )


def check_sparsity(sparsity: float) -> None:
    """Raises SubFitError if `sparsity` is not in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise SubFitError(f"sparsity is {sparsity}; it must be at least 0 and less than 1")
