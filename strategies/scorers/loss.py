"""What the model's next-token loss is when one site is dropped or bypassed."""

from typing import Any

from subfit import registry
from subfit.fitting.trials import trial_costs
from subfit.scorer import Scorer


class Loss(Scorer):
    """Next-token loss, in nats per token, with this one site dropped (as SLEB, arXiv 2402.09025) or bypassed.

    Args:
        bypass: what stands in a site's place on trial: a name, or a mapping with `class_path` and `init_args`; `identity`
            drops the site.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
    """

    def __init__(self, bypass: str | dict[str, Any] = "identity", windows: int = 8, length: int = 256):
        self.bypass = registry.make("bypasses", bypass)
        self.windows = windows
        self.length = length

    def score(self, calibration):
        return trial_costs(calibration, self.bypass, self.windows, self.length, "loss")
