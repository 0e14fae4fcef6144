"""Scores by chance, the baseline of every scorer."""

from random import Random

from subfit.scorer import Scorer


class RandomScore(Scorer):
    """Uniform in [0, 1), whatever the data.

    Args:
        seed: of the scores.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def score(self, calibration):
        generator = Random(self.seed)
        return {site: generator.random() for site in calibration.sites}
