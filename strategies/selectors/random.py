"""Sites by chance, the baseline of every selection."""

from random import Random

from subfit.selector import Selector, pools


class RandomChoice(Selector):
    """Takes sites of each type by chance.

    Args:
        seed: of the choice.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def select(self, scores, budget, calibration):
        generator = Random(self.seed)
        chosen = []
        for pool in pools(scores, "submodule"):
            chosen += budget.fill(generator.sample(pool.groups, len(pool.groups)), pool.kinds)
        return [site for group in chosen for site in group]
