"""Low-rank maps in the places of the branches, with more rank where it explains more."""

from collections.abc import Iterable
from typing import Literal

from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.errors import SubFitError
from subfit.fitting.layers import linear_layer
from subfit.fitting.regression import allocate_ranks, centre, check_ridge, rank_gains, reduced_rank
from subfit.model.activations import Branch
from subfit.model.submodules import Site


class AllocatedLowRank(Bypass):
    """x A_i B_i + b_i by reduced-rank regression, with the ranks of all sites chosen together under one budget.

    A unit of rank costs every site the same, and what it explains of a site's targets follows from the singular values of
    the whitened covariance of inputs and targets on the dense stream: each goes where it explains most. Every site gets one.

    Args:
        share: added parameters of all sites together, as a share of the removed ones; all of the whole ranks that fit.
        ridge: penalty on A_i B_i, relative to the mean variance of the inputs.
        by: what counts: the `share` of a site's own target variance that is explained, or the `variance` itself.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm.

    Raises:
        SubFitError: if `by` is neither.
    """

    def __init__(
        self,
        share: float = 0.1,
        ridge: float = 1e-4,
        by: Literal["share", "variance"] = "share",
        reads: Literal["input", "stream"] = "input",
    ) -> None:
        check_ridge(ridge)
        if by not in ("share", "variance"):
            raise SubFitError(f"ranks are allocated by {by!r}; use share or variance")
        self.share = share
        self.ridge = ridge
        self.by = by
        self.reads = reads

    def parameters(self, sites: list[Site]) -> int:
        return sites[0].width * (2 * self._total(sites) + len(sites)) if sites else 0

    def fit_shared(self, sites: list[Site], statistics: Iterable[Moments]) -> dict[Site, int]:
        gains = []
        for c in map(centre, statistics):
            gain = rank_gains(c, self.ridge)
            gains.append(gain / c.yy if self.by == "share" and c.yy > 0 else gain)
        return dict(zip(sites, allocate_ranks(gains, self._total(sites)), strict=True))

    def fit(self, branch: Branch, moments: Moments, shared: dict[Site, int]) -> nn.Module:
        c = centre(moments)
        a, b = reduced_rank(c, shared[branch.site], self.ridge)
        return nn.Sequential(linear_layer(a), linear_layer(b, c.mean_y - c.mean_x @ a @ b))

    def _total(self, sites: list[Site]) -> int:
        """The ranks of all sites together: at least one each, at most d each."""
        width, count = sites[0].width, len(sites)
        allowance = self.share * sum(site.parameters for site in sites)
        total = min(int((allowance - width * count) // (2 * width)), width * count)
        if total < count:
            raise SubFitError(f"{allowance:.0f} added parameters are too few for rank 1 at each of {count} sites")
        return total
