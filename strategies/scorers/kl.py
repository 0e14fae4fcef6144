"""What the model's distribution loses when one site is dropped or bypassed."""

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration, check_subset
from subfit.fitting.trials import check_copying, trial_costs
from subfit.scorer import Scorer, Scores
from subfit.strategies.bypasses.low_rank import LowRank


class KL(Scorer):
    """KL divergence, in nats per token, from the dense model to the same model with this one site bypassed.

    Every site is bypassed by a map fitted to the dense stream, and tried on a few calibration windows. What a site does to
    rare tokens is seen by its consequences. With the bypass `identity` the site is dropped.

    Args:
        bypass: what stands in a site's place on trial.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
        copying: weight of the divergence on as many windows of random tokens, the second half of which repeats the first.
    """

    def __init__(self, bypass: Bypass = LowRank(), windows: int = 8, length: int = 256, copying: float = 0.0) -> None:
        check_subset(windows, length)
        check_copying(copying, length)
        self.bypass = bypass
        self.windows = windows
        self.length = length
        self.copying = copying

    def score(self, calibration: Calibration) -> Scores:
        return trial_costs(calibration, self.bypass, self.windows, self.length, "kl", self.copying)
