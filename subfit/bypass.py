"""The interface of bypasses: the small map that takes a branch's place."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.sites import Site


class Bypass(ABC):
    """A way to fit a small module in the place of a site.

    The module is made of `torch.nn` modules (a `Sequential` of `Linear`s, say), or of a class of the plug-in's own that
    uses torch alone and keeps its constructor's arguments as attributes; its source then travels with the checkpoint. The
    same module object may be a part of the `Sequential`s of several sites: it is counted and saved once.

    Attributes:
        reads: what the module is given: the branch's normed "input", the residual "stream", or "nothing" of interest, in
            which case no moments are gathered for it.
    """

    reads: Literal["input", "stream", "nothing"] = "input"

    def fit_group(self, sites: list[Site], moments: Iterable[dict[str, Tensor]]) -> Any:
        """Learns what all sites of one run have in common, such as a basis; `fit` gets what is returned.

        A bypass that does not override this is never asked to wait for all sites' moments.

        Args:
            sites: the sites that this bypass will replace.
            moments: the sums of `Moments.compute` of each site on the dense model, read one site at a time.
        """
        return None

    @abstractmethod
    def fit(self, site: Site, moments: dict[str, Tensor], common: Any) -> nn.Module:
        """Returns the module, mapping (..., d) to (..., d), fitted to one site.

        Args:
            site: the site to replace.
            moments: the sums of `Moments.compute` over the calibration tokens; empty if the module reads nothing.
            common: what `fit_group` returned.
        """

    def needs_group(self) -> bool:
        """Whether the sites have something in common that must be learned first."""
        return type(self).fit_group is not Bypass.fit_group


def rank_for(rank: int | Literal["auto"], allowance: float, fixed: int, per_rank: int, width: int) -> int:
    """Returns the rank of a factorised map: as given, or the largest that keeps to an allowance of parameters.

    Args:
        rank: the rank, or "auto".
        allowance: number of parameters that may be added.
        fixed: parameters whatever the rank, such as the bias.
        per_rank: parameters that each unit of rank costs.
        width: d; a higher rank adds nothing.

    Raises:
        SubFitError: if the given rank is not in 1..width, or not even rank 1 fits into the allowance.
    """
    if rank == "auto":
        largest = min(int((allowance - fixed) // per_rank), width)
        if largest < 1:
            raise SubFitError(f"no rank fits into {allowance:.0f} added parameters; give the bypass a larger share")
        return largest
    if not 1 <= rank <= width:
        raise SubFitError(f"rank is {rank}; it must be from 1 to {width}, the width of the residual stream")
    return rank


def linear_layer(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Returns the layer that maps rows x to x W + b; `weight` W is (in, out)."""
    inputs, outputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
