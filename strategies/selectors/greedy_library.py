"""One of several bypasses for each site, chosen step by step, each step judged with the earlier choices in place."""

import math
from collections.abc import Mapping
from typing import Literal

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.budget import ROUNDING, Budget
from subfit.fitting.integer_programme import gains
from subfit.fitting.library import BypassLibrary, Way
from subfit.fitting.trials import Trials
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector
from subfit.strategies.bypasses.kept_neurons import KeptNeurons
from subfit.strategies.bypasses.low_rank import LowRank


class GreedyLibrary(Selector):
    """Chooses in rounds a site and one of several bypasses for it, those that lose least for what they save.

    `library` adds up what each bypass costs alone. Here, as in `greedy`, each round but the first tries the bypasses with
    the earlier choices in place. A choice is judged by how much it raises the KL divergence from the dense model for each
    unit of the budget that it saves and that is still missing. Choices after which the budget cannot be met are passed over.
    The run's own bypasses, and the scores, are not used.

    Args:
        attention: bypasses to choose from for each Attention; none if they are all to stay.
        ffn: the same for each FeedForward.
        rounds: number of rounds, among which the budget is divided; `each` lets every choice be a round.
        pool: how many sites are tried after the first round, as a multiple of those that the budget takes by it alone.
        fitted_on: number of calibration windows that the bypasses are fitted on for the trials.
        windows: number of other calibration windows to measure on.
        length: tokens of each, from its beginning.
        copying: weight of the divergence on as many windows of random tokens, the second half of which repeats the first.

    Raises:
        SubFitError: if there is nothing to choose from, there is no round, the pool is smaller than the budget, `copying` is
            negative, or the budget cannot be met.
    """

    def __init__(
        self,
        attention: list[Bypass] = [LowRank()],  # noqa: B006 (a strategy never changes its arguments)
        ffn: list[Bypass] = [LowRank(), KeptNeurons(0.25), KeptNeurons(0.5)],  # noqa: B006 (as above)
        rounds: int | Literal["each"] = "each",
        pool: float = 2.0,
        fitted_on: int = 16,
        windows: int = 8,
        length: int = 256,
        copying: float = 0.0,
    ) -> None:
        if (rounds != "each" and rounds < 1) or pool < 1:
            raise SubFitError(f"greedy_library: rounds is {rounds} and pool is {pool}; both must be at least 1")
        self.library = BypassLibrary(attention, ffn, fitted_on, windows, length, copying)
        self.rounds = rounds
        self.pool = pool

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> dict[Site, Bypass]:
        options, trials = self.library.tried(scores, budget, calibration)
        alone = {way: option.cost for way, option in options.items()}
        goal = Goal(dict(zip(options, gains(list(options.values())), strict=True)), budget)
        pool = goal.pool(alone, self.pool)
        chosen: list[Way] = []
        while goal.missing(chosen):
            free = goal.free(chosen)
            tried = [way for way in free if way[0] in pool] or free
            chosen = goal.extended(chosen, increases(trials, chosen, tried) if chosen else alone, self.rounds)
        found = dict(chosen)
        return {site: found[site] for site in scores if site in found}


def increases(trials: Trials[Way], chosen: list[Way], ways: list[Way]) -> dict[Way, float]:
    """Returns by how much each of some further ways raises the divergence, with the chosen ones in place."""
    before, *after = trials.costs(chosen, [[], *([way] for way in ways)])
    return {way: cost - before for way, cost in zip(ways, after, strict=True)}


class Goal:
    """What the budget asks for, and what each way to replace a site saves of it.

    Args:
        savings: of each way, in the unit of the budget.
        budget: the budget.

    Raises:
        SubFitError: if it is out of reach.
    """

    def __init__(self, savings: Mapping[Way, float], budget: Budget):
        self.savings = savings
        self.total = budget.goal()
        if self.total and not self.free([]):
            most = sum(self._largest([]).values())
            wanted = f"{self.total:.4g} {budget.unit} are to be saved"
            raise SubFitError(f"greedy_library: {wanted}, and the bypasses to choose from save {most:.4g} at most")

    def missing(self, chosen: list[Way]) -> float:
        """Returns what the chosen ways leave to be saved; 0 if that is no more than a rounding error."""
        left = self.total - sum(self.savings[way] for way in chosen)
        return left if left > ROUNDING * self.total else 0.0

    def free(self, chosen: list[Way]) -> list[Way]:
        """Returns the ways of other sites that save something, and after which the rest can still be saved."""
        largest = self._largest(chosen)
        spare = sum(largest.values()) - self.missing(chosen) + ROUNDING * self.total
        return [
            way for way, saving in self.savings.items() if saving > 0 and largest.get(way[0], math.inf) - saving <= spare
        ]

    def extended(self, chosen: list[Way], costs: Mapping[Way, float], rounds: int | Literal["each"]) -> list[Way]:
        """Returns the chosen ways and the cheapest others: one, or as many as fill the next one of equal parts of the goal.

        Args:
            costs: of the ways to choose from.
            rounds: number of parts.
        """
        until = missing = self.missing(chosen)
        if rounds != "each" and missing:
            part = self.total / rounds
            until = part * (math.ceil(missing / part - ROUNDING * rounds) - 1)
        while missing and (ways := [way for way in self.free(chosen) if way in costs]):
            chosen = [*chosen, min(ways, key=lambda way: costs[way] / min(self.savings[way], missing))]
            missing = self.missing(chosen)
            if missing <= until:
                break
        return chosen

    def pool(self, alone: Mapping[Way, float], multiple: float) -> set[Site]:
        """Returns the sites that cost least for what they save, a multiple of those that the goal takes by it alone."""
        needed = len(self.extended([], alone, 1))
        ways = sorted(self.free([]), key=lambda way: alone[way] / self.savings[way])
        ranked = list(dict.fromkeys(site for site, _ in ways))
        return set(ranked[: math.ceil(multiple * needed)])

    def _largest(self, chosen: list[Way]) -> dict[Site, float]:
        """The most that each site can save which is not among the chosen ones."""
        taken = {site for site, _ in chosen}
        largest: dict[Site, float] = {}
        for (site, _), saving in self.savings.items():
            if site not in taken:
                largest[site] = max(largest.get(site, 0.0), saving)
        return largest
