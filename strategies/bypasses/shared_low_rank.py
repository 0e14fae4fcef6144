"""A low-rank map in the place of the branch, whose input basis all replaced sites share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.fitting.layers import linear_layer, rank_for
from subfit.fitting.regression import centre, check_ridge, least_squares, project, shared_basis
from subfit.model.activations import Branch
from subfit.model.submodules import Site


@dataclass(frozen=True)
class Basis:
    """What all sites have in common.

    Attributes:
        columns: (d, rank), A, float64.
        layer: the map x A, in which the bypasses share it; None where products take the factors' places.
    """

    columns: Tensor
    layer: nn.Linear | None = None


class SharedLowRank(Bypass):
    """x A B_i + b_i with one A for all sites, SubFit's bypass for FeedForward (arXiv 2606.02559).

    The shared part is paid once, so that the rank can be higher at the same number of added parameters. How the paper finds
    A is not public; here it is the basis from which all sites together are best predicted (`regression.shared_basis`), and
    each B_i is the least-squares map from it. Where all factors together are larger than their products, these take their
    place, and nothing is shared.

    Args:
        rank: columns of A, or `auto`: as many as `share` allows.
        share: added parameters as a share of the removed ones, for rank `auto`.
        ridge: penalty, relative to the mean variance of the inputs.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm.
    """

    def __init__(
        self,
        rank: int | Literal["auto"] = "auto",
        share: float = 0.1,
        ridge: float = 1e-4,
        reads: Literal["input", "stream"] = "input",
    ) -> None:
        check_ridge(ridge)
        self.rank = rank
        self.share = share
        self.ridge = ridge
        self.reads = reads

    def parameters(self, sites: list[Site]) -> int:
        if not sites:
            return 0
        width, rank = sites[0].width, self._rank(sites)
        return width * (min(rank * (1 + len(sites)), width * len(sites)) + len(sites))

    def fit_shared(self, sites: list[Site], statistics: Iterable[Moments]) -> Basis:
        rank, width = self._rank(sites), sites[0].width
        if rank == width:
            return Basis(torch.eye(width, dtype=torch.float64))
        columns = shared_basis(map(centre, statistics), rank, self.ridge)
        return Basis(columns, None if self._multiplied(rank, sites) else linear_layer(columns))

    def fit(self, branch: Branch, moments: Moments, shared: Basis) -> nn.Module:
        layer = shared.layer
        basis = (shared.columns if layer is None else layer.weight.detach().double().T).to(moments.xx.device)  # as rounded
        c = project(centre(moments), basis)
        weight = least_squares(c, self.ridge)
        bias = c.mean_y - c.mean_x @ weight
        if layer is None:
            return linear_layer(basis @ weight, bias)
        return nn.Sequential(layer, linear_layer(weight, bias))

    def _rank(self, sites: list[Site]) -> int:
        allowance = self.share * sum(site.parameters for site in sites)
        width, count = sites[0].width, len(sites)
        rank = rank_for(self.rank, allowance, width * count, width * (1 + count), width)
        return width if self.rank == "auto" and self._multiplied(rank, sites) else rank

    def _multiplied(self, rank: int, sites: list[Site]) -> bool:
        """Whether the products of the factors are smaller than the factors."""
        return rank * (1 + len(sites)) >= sites[0].width * len(sites)
