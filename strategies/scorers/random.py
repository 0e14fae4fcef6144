"""Scores by chance, the baseline of every scorer."""

from random import Random

from subfit.calibration.capture import Calibration
from subfit.scorer import Scorer, Scores


class RandomScore(Scorer):
    """Uniform in [0, 1), whatever the data.

    Args:
        seed: of the scores; the run's if not given.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def score(self, calibration: Calibration) -> Scores:
        generator = Random(self.seed or 0)
        return {site: generator.random() for site in calibration.sites}
