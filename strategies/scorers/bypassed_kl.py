"""What the model's distribution loses when one site is bypassed."""

from torch import Tensor

from strategies.bypasses.low_rank import LowRank
from subfit.candidates import Candidates
from subfit.scorer import Scorer


class BypassedKL(Scorer):
    """KL divergence, in nats per token, from the dense model to the same model with this one site bypassed.

    Every site is bypassed by a map fitted to the dense stream, and tried on a few calibration windows. What a site does to
    rare tokens is seen by its consequences.

    Args:
        share, ridge: of the low-rank map that stands in a site's place on trial.
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
    """

    def __init__(self, share: float = 0.1, ridge: float = 0.05, windows: int = 8, length: int = 256):
        super().__init__()
        self.bypass = LowRank(share=share, ridge=ridge)
        self.windows = windows
        self.length = length

    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        raise TypeError("this score is not a sum over batches; it comes from `score`")

    def compute(self) -> Tensor:
        raise TypeError("this score is not a sum over batches; it comes from `score`")

    def score(self, calibration):
        return Candidates.of(calibration, self.bypass, self.windows, self.length).divergences((), calibration.sites)
