"""A full linear map in the place of the branch."""

from typing import Literal

from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.fitting.layers import linear_layer
from subfit.fitting.priors import check_prior, own_map
from subfit.fitting.regression import centre, check_ridge, least_squares, towards
from subfit.model.activations import Branch
from subfit.model.submodules import Site


class Linear(Bypass):
    """x W + b of full rank, by ridge least squares on centred moments (as NBL, arXiv 2505.21077).

    Args:
        ridge: penalty on W minus its prior, relative to the mean variance of the inputs.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm, as NBL does.
        prior: what W is drawn to: `zero`, or `weights`, W_V W_O of an Attention (HARP, arXiv 2507.01900), which is what it
            computes of a token that attends to itself alone, on any text.

    Raises:
        SubFitError: if the prior is a map of something else than the bypass reads.
    """

    def __init__(
        self,
        ridge: float = 1e-4,
        reads: Literal["input", "stream"] = "input",
        prior: Literal["zero", "weights"] = "zero",
    ) -> None:
        check_ridge(ridge)
        check_prior(prior, reads)
        self.ridge = ridge
        self.reads = reads
        self.prior = prior

    def parameters(self, sites: list[Site]) -> int:
        return sum(site.width * (site.width + 1) for site in sites)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c = centre(moments)
        if self.prior == "weights":
            c = towards(c, own_map(branch), self.ridge)
        weight = least_squares(c, self.ridge)
        return linear_layer(weight, c.mean_y - c.mean_x @ weight)
