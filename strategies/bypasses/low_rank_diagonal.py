"""A low-rank map and a factor for each dimension, in the place of the branch."""

from typing import Literal

from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.fitting.layers import linear_layer, rank_for, scale_layer
from subfit.fitting.regression import centre, check_ridge, diagonal_and_low_rank
from subfit.model.activations import Branch
from subfit.model.modeling_subfit import Sum
from subfit.model.submodules import Site


class LowRankDiagonal(Bypass):
    """x diag(w) + x A B + b, by reduced-rank and diagonal regression in turns (`regression.diagonal_and_low_rank`).

    Args:
        rank: columns of A, or `auto`: as many as `share` allows.
        share: added parameters as a share of the removed ones, for rank `auto`.
        ridge: penalty on diag(w) + A B, relative to the mean variance of the inputs.
        alternations: how many times w and A B are refitted to each other; each takes a singular value decomposition.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm.
    """

    def __init__(
        self,
        rank: int | Literal["auto"] = "auto",
        share: float = 0.1,
        ridge: float = 1e-4,
        alternations: int = 5,
        reads: Literal["input", "stream"] = "input",
    ) -> None:
        check_ridge(ridge)
        self.rank = rank
        self.share = share
        self.ridge = ridge
        self.alternations = alternations
        self.reads = reads

    def parameters(self, sites: list[Site]) -> int:
        return sum(2 * site.width * (self._rank(site) + 1) for site in sites)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c = centre(moments)
        weight, a, b = diagonal_and_low_rank(c, self._rank(branch.site), self.ridge, self.alternations)
        scale = scale_layer(weight, c.mean_y - c.mean_x * weight - c.mean_x @ a @ b)
        return Sum(scale, nn.Sequential(linear_layer(a), linear_layer(b)))

    def _rank(self, site: Site) -> int:
        return rank_for(self.rank, self.share * site.parameters, 2 * site.width, 2 * site.width, site.width)
