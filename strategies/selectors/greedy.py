"""The best sites step by step, each step judged with the earlier choices in place."""

import math
from typing import Literal

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration, check_subset
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.fitting.trials import Trials, check_copying
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Pool, Selector, pools
from subfit.strategies.bypasses.low_rank import LowRank

Group = tuple[Site, ...]


class Greedy(Selector):
    """Chooses in rounds the sites that raise a cost least, given those already bypassed.

    The first round goes by the scores as they are, each later one by the cost with the earlier choices bypassed (in the way
    of SLEB, arXiv 2402.09025, and BlockPruner, arXiv 2406.10594, where sites are dropped and each is a round).

    Args:
        rounds: number of rounds, among which the budget is divided; `each` lets every choice be a round.
        pool: how many units are tried, as a multiple of those that the budget takes by score alone.
        bypass: what stands in a site's place on trial; `identity` drops it.
        unit: `submodule` takes each type's sites independently, `layer` both of a layer at once.
        measure: the cost of a trial: `kl`, the divergence from the dense model, or `loss`, that of the next token.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
        copying: weight of the same cost on as many windows of random tokens, the second half of which repeats the first.

    Raises:
        SubFitError: if there is no round, the pool is smaller than the budget, or `copying` is negative.
    """

    def __init__(
        self,
        rounds: int | Literal["each"] = 3,
        pool: float = 2.0,
        bypass: Bypass = LowRank(),
        unit: Literal["submodule", "layer"] = "submodule",
        measure: Literal["kl", "loss"] = "kl",
        windows: int = 8,
        length: int = 256,
        copying: float = 0.0,
    ) -> None:
        check_subset(windows, length)
        check_copying(copying, length)
        if (rounds != "each" and rounds < 1) or pool < 1:
            raise SubFitError(f"greedy: rounds is {rounds} and pool is {pool}; both must be at least 1")
        self.rounds = rounds
        self.pool = pool
        self.bypass = bypass
        self.unit = unit
        self.measure = measure
        self.windows = windows
        self.length = length
        self.copying = copying

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        parts, most = [], 1
        for pool in pools(scores, self.unit):
            needed = len(budget.fill(pool.ranked(scores), pool.kinds))
            parts.append(Pool(pool.kinds, pool.ranked(scores)[: math.ceil(self.pool * needed)]))
            most = max(most, needed)
        costs = {group: sum(scores[site] for site in group) for part in parts for group in part.groups}
        chosen: list[Group] = []
        rounds = most if self.rounds == "each" else self.rounds
        for step in range(1, rounds + 1):
            if step > 1:
                costs = self._costs(calibration, parts, chosen)
            chosen = [group for part in parts for group in _extended(part, chosen, costs, budget, step / rounds)]
        return [site for group in chosen for site in group]

    def _costs(self, calibration: Calibration, parts: list[Pool], chosen: list[Group]) -> dict[Group, float]:
        """The cost of each group that is not chosen yet, with the chosen ones bypassed."""
        rest = [group for part in parts for group in part.groups if group not in chosen]
        trials = Trials.of(calibration, self.bypass, self.windows, self.length, self.copying)
        taken = [site for group in chosen for site in group]
        return dict(zip(rest, trials.costs(taken, rest, self.measure), strict=True))


def _extended(part: Pool, chosen: list[Group], costs: dict[Group, float], budget: Budget, share: float) -> list[Group]:
    """The chosen groups of a pool, and the cheapest others, as many as fill this share of the budget."""
    before = [group for group in chosen if group in part.groups]
    after = sorted((group for group in part.groups if group not in chosen), key=costs.__getitem__)
    return budget.fill(before + after, part.kinds, share)
