"""What the model's distribution loses when one site is dropped or bypassed."""

from typing import Any

from subfit import registry
from subfit.fitting.trials import trial_costs
from subfit.scorer import Scorer


class KL(Scorer):
    """KL divergence, in nats per token, from the dense model to the same model with this one site bypassed.

    Every site is bypassed by a map fitted to the dense stream, and tried on a few calibration windows. What a site does to
    rare tokens is seen by its consequences. With the bypass `identity` the site is dropped.

    Args:
        bypass: what stands in a site's place on trial: a name, or a mapping with `class_path` and `init_args`.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
    """

    def __init__(self, bypass: str | dict[str, Any] = "low_rank", windows: int = 8, length: int = 256):
        self.bypass = registry.make("bypasses", bypass)
        self.windows = windows
        self.length = length

    def score(self, calibration):
        return trial_costs(calibration, self.bypass, self.windows, self.length, "kl")
