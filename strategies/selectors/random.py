"""Sites by chance, the baseline of every selection."""

from random import Random

from subfit.calibration.capture import Calibration
from subfit.fitting.budget import Budget
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector, pools


class RandomChoice(Selector):
    """Takes sites of each type by chance.

    Args:
        seed: of the choice; the run's if not given.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        generator = Random(self.seed or 0)
        chosen = []
        for pool in pools(scores, "submodule"):
            chosen += budget.fill(generator.sample(pool.groups, len(pool.groups)), pool.kinds)
        return [site for group in chosen for site in group]
