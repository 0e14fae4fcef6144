"""A factor for each dimension of the input, in the place of the branch."""

from typing import Literal

from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.fitting.layers import scale_layer
from subfit.fitting.regression import centre, check_ridge, diagonal_weights
from subfit.model.activations import Branch
from subfit.model.submodules import Site


class Diagonal(Bypass):
    """x * w + b with a w for each dimension, 0 where x is constant, by ridge least squares on centred moments.

    Args:
        ridge: penalty on w, relative to the mean variance of the inputs.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm.
    """

    def __init__(self, ridge: float = 1e-4, reads: Literal["input", "stream"] = "input") -> None:
        check_ridge(ridge)
        self.ridge = ridge
        self.reads = reads

    def parameters(self, sites: list[Site]) -> int:
        return sum(2 * site.width for site in sites)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c = centre(moments)
        weight = diagonal_weights(c, self.ridge)
        return scale_layer(weight, c.mean_y - c.mean_x * weight)
