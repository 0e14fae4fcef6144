"""A search over whole selections, each judged by what the model loses with all of it bypassed."""

from random import Random
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

Groups = frozenset[tuple[Site, ...]]


class Evolutionary(Selector):
    """Evolutionary search over selections within the budget (EvoPress, arXiv 2410.14649), starting at the lowest scores.

    In each generation, mutations exchange a few chosen sites for others of the same type; the best of them and of their
    parent, on the calibration windows, is the next parent. So the cost never rises, and each type's budget is kept. EvoPress
    measures the offspring on growing amounts of data; here every one is measured on all of the given windows.

    Args:
        generations: number of generations.
        offspring: mutations tried in each.
        exchanges: most sites that a mutation exchanges.
        bypass: what stands in a site's place on trial; `identity` drops it, as in EvoPress.
        unit: `submodule`, or `layer` for both sites of a layer at once.
        measure: `kl`, the divergence from the dense model, or `loss`, that of the next token.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
        copying: weight of the same cost on as many windows of random tokens, the second half of which repeats the first.
        seed: of the mutations; the run's if not given.

    Raises:
        SubFitError: if a number is not positive, or `copying` is negative.
    """

    def __init__(
        self,
        generations: int = 20,
        offspring: int = 8,
        exchanges: int = 2,
        bypass: Bypass = LowRank(),
        unit: Literal["submodule", "layer"] = "submodule",
        measure: Literal["kl", "loss"] = "kl",
        windows: int = 8,
        length: int = 256,
        copying: float = 0.0,
        seed: int | None = None,
    ) -> None:
        check_subset(windows, length)
        check_copying(copying, length)
        if min(generations, offspring, exchanges) < 1:
            raise SubFitError("evolutionary: generations, offspring and exchanges must be at least 1")
        self.generations = generations
        self.offspring = offspring
        self.exchanges = exchanges
        self.bypass = bypass
        self.unit = unit
        self.measure = measure
        self.windows = windows
        self.length = length
        self.copying = copying
        self.seed = seed

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        generator = Random(self.seed or 0)
        parts = [part for part in pools(scores, self.unit) if part.groups or budget.goal(*part.kinds)]
        best = [frozenset(budget.fill(part.ranked(scores), part.kinds)) for part in parts]
        measured = Trials.of(calibration, self.bypass, self.windows, self.length, self.copying)
        for _ in range(self.generations):
            tried = [best] + [self._mutated(best, parts, budget, generator) for _ in range(self.offspring)]
            trials = [[site for chosen in selection for group in chosen for site in group] for selection in tried]
            costs = measured.costs((), trials, self.measure)
            best = tried[costs.index(min(costs))]
        return [site for chosen in best for group in chosen for site in group]

    def _mutated(self, parent: list[Groups], parts: list[Pool], budget: Budget, generator: Random) -> list[Groups]:
        """A selection that exchanges up to `exchanges` groups of one part, and still fills its budget."""
        child = list(parent)
        index = generator.randrange(len(parts))
        chosen, part = parent[index], parts[index]
        others = [group for group in part.groups if group not in chosen]
        count = min(generator.randint(1, self.exchanges), len(chosen), len(others))
        leaving = generator.sample(sorted(chosen, key=part.groups.index), count)
        entering = generator.sample(others, count)
        child[index] = chosen.difference(leaving).union(entering)
        savings = budget.savings()
        kept = sum(savings[site] for group in child[index] for site in group) >= budget.goal(*part.kinds) * (1 - 1e-9)
        return child if kept else list(parent)
