"""A full linear map in the place of the branch."""

from typing import Literal

from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.fitting.layers import linear_layer
from subfit.fitting.regression import centre, check_ridge, least_squares
from subfit.model.activations import Branch
from subfit.model.submodules import Site


class Linear(Bypass):
    """x W + b of full rank, by ridge least squares on centred moments (as NBL, arXiv 2505.21077).

    Args:
        ridge: penalty on W, relative to the mean variance of the inputs.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm, as NBL does.
    """

    def __init__(self, ridge: float = 1e-4, reads: Literal["input", "stream"] = "input") -> None:
        check_ridge(ridge)
        self.ridge = ridge
        self.reads = reads

    def parameters(self, sites: list[Site]) -> int:
        return sum(site.width * (site.width + 1) for site in sites)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c = centre(moments)
        weight = least_squares(c, self.ridge)
        return linear_layer(weight, c.mean_y - c.mean_x @ weight)
