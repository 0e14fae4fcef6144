"""What a sparsity of 25 % means: that share of the submodules of each type, or of what they cost in another unit."""

import math
from collections.abc import Collection, Iterable, Mapping

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.costs import Unit, bypass_costs, check_unit, site_costs
from subfit.model.submodules import KINDS, Kind, Site


class Budget:
    """How much to take out of a model.

    In submodules, the paper's budget (arXiv 2606.02559): round(sparsity * n) of the n sites of each type, halves rounded
    up. In another unit: at least that share of what the sites of each type cost, net of what their bypasses cost.

    Args:
        calibration: the model and its sites.
        bypasses: what would take the place of each kind of site.
        sparsity: the share to take out, in [0, 1).
        unit: see `fitting.costs.site_costs`.

    Raises:
        SubFitError: if `sparsity` is out of range, or there is no such unit.
    """

    def __init__(
        self, calibration: Calibration, bypasses: Mapping[Kind, Bypass], sparsity: float, unit: Unit = "submodules"
    ):
        check_sparsity(sparsity)
        check_unit(unit)
        self._calibration = calibration
        self._bypasses = bypasses
        self.sparsity = sparsity
        self.unit = unit

    def savings(self, unit: Unit | None = None) -> dict[Site, float]:
        """Returns what replacing each site saves in a unit, by default the budget's, net of its bypass."""
        unit = unit or self.unit
        gross = site_costs(self._calibration, unit)
        added = bypass_costs(self._calibration, self._bypasses, unit)
        return {site: gross[site] - added[site] for site in gross}

    def goal(self, *kinds: Kind, sparsity: float | None = None, unit: Unit | None = None) -> float:
        """Returns how much must be saved on sites of these kinds, by default both, in a unit, by default the budget's."""
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
        chosen, saved = list[tuple[Site, ...]](), 0.0
        for group in ranked:
            gain = sum(savings[site] for site in group)
            if gain <= 0:
                continue
            if saved >= goal * (1 - 1e-9) if part == 1 else saved + gain / 2 > goal:
                break
            chosen, saved = [*chosen, group], saved + gain
        if part == 1 and saved < goal * (1 - 1e-9):
            what = " and ".join({"attention": "Attentions", "ffn": "FeedForwards"}[kind] for kind in kinds)
            raise SubFitError(
                f"a sparsity of {self.sparsity} cannot be reached: all {what} that may be replaced save {saved:.4g} "
                f"{self.unit}, and {goal:.4g} are wanted"
            )
        return chosen


def check_sparsity(sparsity: float) -> None:
    """Raises SubFitError if `sparsity` is not in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise SubFitError(f"sparsity is {sparsity}; it must be at least 0 and less than 1")
