"""A full linear map in the place of the branch."""

from torch import nn

from subfit.bypass import Bypass, linear_layer
from subfit.regression import centre, least_squares


class Linear(Bypass):
    """x W + b of full rank, by ridge least squares on centred moments (as NBL, arXiv 2505.21077).

    Args:
        ridge: penalty on W, relative to the mean variance of the inputs.
    """

    def __init__(self, ridge: float = 1e-4):
        self.ridge = ridge

    def fit(self, site, moments, common) -> nn.Module:
        c = centre(moments)
        weight = least_squares(c, self.ridge)
        return linear_layer(weight, c.mean_y - c.mean_x @ weight)
