"""What the model's next-token loss is when one site is dropped or bypassed."""

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration, check_subset
from subfit.fitting.trials import trial_costs
from subfit.scorer import Scorer, Scores
from subfit.strategies.bypasses.identity import Identity


class Loss(Scorer):
    """Next-token loss, in nats per token, with this one site dropped (as SLEB, arXiv 2402.09025) or bypassed.

    Args:
        bypass: what stands in a site's place on trial; `identity` drops the site.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
    """

    def __init__(self, bypass: Bypass = Identity(), windows: int = 8, length: int = 256) -> None:
        check_subset(windows, length)
        self.bypass = bypass
        self.windows = windows
        self.length = length

    def score(self, calibration: Calibration) -> Scores:
        return trial_costs(calibration, self.bypass, self.windows, self.length, "loss")
