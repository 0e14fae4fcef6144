"""The interface of bypasses: the small map that takes a branch's place."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError, where
from subfit.model.modeling_subfit import Scale
from subfit.model.submodules import Site
from subfit.strategy import Strategy

Run = Callable[[nn.Module, Tensor], Tensor]
Reads = Literal["input", "stream", "nothing", "previous"]


class Bypass(Strategy):
    """A way to fit a small module in the place of a site.

    The module is made of `torch.nn` modules (a `Sequential` of `Linear`s, say), or of a class of the plug-in's own that
    uses torch alone and keeps its constructor's arguments as attributes; its source then travels with the checkpoint. The
    same module object may be a part of the `Sequential`s of several sites: it is counted and saved once.

    Attributes:
        reads: what the module is given: the branch's normed "input", the residual "stream" before its norm, or "nothing" of
            interest. The module of one that reads "previous" is a linear map of what the last kept FeedForward before the
            site adds; it is merged into that FeedForward, and nothing is left at the site.
        needs: what `fit` is given: "moments", also the "pairs" that they are made of, or "nothing". One that needs the
            "layer" defines `fit_layer` instead of `fit`.
    """

    reads: Reads = "input"
    needs: Literal["nothing", "moments", "pairs", "layer"] = "moments"

    def assign(self, sites: list[Site]) -> dict[Site, "Bypass"]:
        """Returns which bypass takes the place of each of the selected sites: this one, unless it is a mixture of others."""
        return dict.fromkeys(sites, self)

    def parameters(self, sites: list[Site]) -> int:
        """Returns the number of parameters that the bypasses of these sites have together.

        Budgets that are net of what the bypasses cost ask for it before anything is fitted.
        """
        place = where(self)
        raise SubFitError(f"{type(self).__name__} does not tell its size; a net budget needs its parameters() ({place})")

    def fit_group(self, sites: list[Site], moments: Iterable[dict[str, Tensor]]) -> Any:
        """Learns what all sites of one run have in common, such as a basis; `fit` gets what is returned.

        A bypass that does not override this is never asked to wait for all sites' moments.

        Args:
            sites: the sites that this bypass will replace.
            moments: the sums of `Moments.compute` of each site on the dense model, read one site at a time.
        """
        return None

    def fit(self, site: Site, moments: dict[str, Tensor], common: Any) -> nn.Module:
        """Returns the module, mapping (..., d) to (..., d), fitted to one site.

        Args:
            site: the site to replace.
            moments: the sums of `Moments.compute` over the calibration tokens. If the bypass needs pairs, also `inputs` and
                `targets`, (tokens, d), what the module reads and what it is fitted to. Empty if it needs nothing.
            common: what `fit_group` returned.
        """
        raise _lacking(self, "fit")

    def fit_layer(self, layer: nn.Module, run: Run, inputs: Tensor, targets: Tensor) -> nn.Module:
        """Returns the site's whole decoder layer with other weights; asked of a bypass that needs the "layer" alone.

        Args:
            layer: a copy of the dense layer, in float32.
            run: runs a layer on some windows (windows, length, d), at most a batch, with the mask and positions they need.
            inputs: (windows, length, d), the stream that enters the layer in the compressed model.
            targets: (windows, length, d), the stream that leaves it in the dense model.
        """
        raise _lacking(self, "fit_layer")

    def needs_group(self) -> bool:
        """Whether the sites have something in common that must be learned first."""
        return type(self).fit_group is not Bypass.fit_group


def _lacking(bypass: Bypass, method: str) -> SubFitError:
    return SubFitError(f"{type(bypass).__name__} lacks the method {method} ({where(bypass)})")


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


def scale_layer(weight: Tensor, bias: Tensor) -> Scale:
    """Returns the layer that maps rows x to x * weight + bias; `weight` is (d), or () for one factor."""
    layer = Scale(len(bias), weight.numel()).to(weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
