"""A low-rank map in the place of the branch, with parameters of its own."""

from typing import Literal

from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.fitting.layers import linear_layer, rank_for
from subfit.fitting.priors import check_prior, own_map
from subfit.fitting.regression import centre, check_ridge, least_squares, reduced_rank, towards
from subfit.model.activations import Branch
from subfit.model.submodules import Site


class LowRank(Bypass):
    """x A B + b by reduced-rank regression, SubFit's bypass for Attention (arXiv 2606.02559).

    From half of the width on, A and B together are larger than their product: then that takes their place.

    Args:
        rank: columns of A, or `auto`: as many as `share` allows.
        share: added parameters as a share of the removed ones, for rank `auto`.
        ridge: penalty on A B minus its prior, relative to the mean variance of the inputs.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm.
        prior: what A B is drawn to: `zero`, or `weights`, W_V W_O of an Attention (HARP, arXiv 2507.01900), which is what it
            computes of a token that attends to itself alone, on any text.

    Raises:
        SubFitError: if the prior is a map of something else than the bypass reads.
    """

    def __init__(
        self,
        rank: int | Literal["auto"] = "auto",
        share: float = 0.1,
        ridge: float = 1e-4,
        reads: Literal["input", "stream"] = "input",
        prior: Literal["zero", "weights"] = "zero",
    ) -> None:
        check_ridge(ridge)
        check_prior(prior, reads)
        self.rank = rank
        self.share = share
        self.ridge = ridge
        self.reads = reads
        self.prior = prior

    def parameters(self, sites: list[Site]) -> int:
        return sum(site.width * (min(2 * self._rank(site), site.width) + 1) for site in sites)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c, rank, width = centre(moments), self._rank(branch.site), branch.site.width
        if self.prior == "weights":
            c = towards(c, own_map(branch), self.ridge)
        if rank == width:
            weight = least_squares(c, self.ridge)
            return linear_layer(weight, c.mean_y - c.mean_x @ weight)
        a, b = reduced_rank(c, rank, self.ridge)
        bias = c.mean_y - c.mean_x @ a @ b
        if 2 * rank >= width:
            return linear_layer(a @ b, bias)
        return nn.Sequential(linear_layer(a), linear_layer(b, bias))

    def _rank(self, site: Site) -> int:
        rank = rank_for(self.rank, self.share * site.parameters, site.width, 2 * site.width, site.width)
        return site.width if self.rank == "auto" and 2 * rank >= site.width else rank
