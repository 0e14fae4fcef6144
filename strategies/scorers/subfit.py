"""The score of SubFit: how far a site turns the residual stream, and how much it can put on it."""

import torch
from torch import Tensor

from subfit.calibration.geometry import angles
from subfit.errors import SubFitError
from subfit.scorer import StreamScorer

BINS = 2048
DECADES = 12  # norms of the stream from 1e-6 to 1e6 are told apart


class SubFit(StreamScorer):
    """Residual rotation times magnitude (arXiv 2606.02559), robust against massive activations.

        rotation  = the `quantile` over tokens of  angle(h, h + y) / pi
        magnitude = max over tokens of |y|  /  median over tokens of |h|,  at least 1
        score     = rotation * magnitude

    How the paper combines the two is not public; this is our choice. A mean over tokens hides what a site does to the few
    tokens that carry massive activations, and on which the whole depth relies: a high quantile of the rotation and the
    largest |y| do not. An ordinary site never adds more than a typical stream is long, so its magnitude is 1.

    The quantile and the median are read off histograms of fixed bins, so that the states are sums and maxima.

    Args:
        quantile: which quantile of the rotation, in (0, 1].

    Raises:
        SubFitError: if it is not.
    """

    angles: Tensor
    norms: Tensor
    peak: Tensor

    def __init__(self, quantile: float = 0.99) -> None:
        super().__init__()
        if not 0 < quantile <= 1:
            raise SubFitError(f"quantile is {quantile}; it must be above 0 and at most 1")
        self.quantile = quantile
        self.add_state("angles", torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("norms", torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("peak", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        h, y = h.flatten(0, -2).float(), y.flatten(0, -2).float()
        self.angles += _histogram(angles(h, h + y) / torch.pi)
        self.norms += _histogram(h.norm(dim=-1).log10() / DECADES + 0.5)
        self.peak = torch.maximum(self.peak, y.norm(dim=-1).max())

    def compute(self) -> Tensor:
        median = 10 ** ((_quantile(self.norms, 0.5) - 0.5) * DECADES)
        return _quantile(self.angles, self.quantile) * (self.peak / median).clamp_min(1)


def _histogram(values: Tensor) -> Tensor:
    """Counts of values in equal bins of [0, 1]; what lies outside belongs to the outer bins."""
    return torch.bincount((values * BINS).long().clamp(0, BINS - 1), minlength=BINS).double()


def _quantile(counts: Tensor, level: float) -> Tensor:
    """The value in [0, 1] below which a share `level` of the counted values lies, interpolated within its bin."""
    below = counts.cumsum(0)
    target = level * below[-1]
    index = torch.searchsorted(below, target).clamp_max(BINS - 1)
    inside = counts[index].clamp_min(1)
    return (index + ((target - (below[index] - counts[index])) / inside).clamp(0, 1)) / BINS
