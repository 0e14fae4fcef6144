"""The best sites step by step, each step judged with the earlier choices in place."""

import math

from strategies.bypasses.low_rank import LowRank
from subfit.candidates import Candidates
from subfit.errors import SubFitError
from subfit.selector import Selector
from subfit.sites import KINDS


class Greedy(Selector):
    """Chooses in rounds the sites that raise the KL divergence least, given those already bypassed.

    The first round goes by the scores as they are, each later one by the divergence with the earlier choices bypassed (in
    the way of SLEB, arXiv 2402.09025, and BlockPruner, arXiv 2406.10594, but with bypasses in the loop).

    Args:
        rounds: number of rounds, among which each type's budget is divided.
        pool: how many sites of a type are tried, as a multiple of its budget; those with the lowest scores.
        share, ridge: of the low-rank map that stands in a site's place on trial.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.

    Raises:
        SubFitError: if there is no round, or the pool is smaller than the budget.
    """

    def __init__(
        self,
        rounds: int = 3,
        pool: float = 2.0,
        share: float = 0.1,
        ridge: float = 0.05,
        windows: int = 8,
        length: int = 256,
    ):
        if rounds < 1 or pool < 1:
            raise SubFitError(f"greedy: rounds is {rounds} and pool is {pool}; both must be at least 1")
        self.rounds = rounds
        self.pool = pool
        self.bypass = LowRank(share=share, ridge=ridge)
        self.windows = windows
        self.length = length

    def select(self, scores, budget, calibration):
        pool = [site for kind in KINDS for site in _lowest(scores, kind, math.ceil(self.pool * budget.of(kind)))]
        chosen: list = []
        costs = {site: scores[site] for site in pool}
        for step in range(1, self.rounds + 1):
            for kind in KINDS:
                wanted = round(step / self.rounds * budget.of(kind)) - sum(site.kind == kind for site in chosen)
                chosen += _lowest(costs, kind, wanted)
            if step < self.rounds:
                rest = [site for site in pool if site not in chosen]
                costs = Candidates.of(calibration, self.bypass, self.windows, self.length).divergences(chosen, rest)
        return chosen


def _lowest(costs, kind, count):
    return sorted((site for site in costs if site.kind == kind), key=lambda site: costs[site])[:count]
