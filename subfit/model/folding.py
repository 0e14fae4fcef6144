"""Folding a linear map of what a FeedForward adds into its output projection, so that it costs nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.model.dtypes import placed, rounded, rounding_of
from subfit.model.processes import full_tensor
from subfit.model.submodules import Site


def last_kept_ffn(sites: Sequence[Site], dropped: set[Site], site: Site) -> Site:
    """Returns the last FeedForward before `site`, if all sites between them are dropped without anything in their place.

    Only then does a map of what that FeedForward adds act as it would act at `site`.

    Raises:
        SubFitError: if another site is between them, or there is no FeedForward.
    """
    for before in reversed(sites[: sites.index(site)]):
        if before not in dropped:
            if before.kind == "ffn":
                return before
            break
    raise SubFitError(
        f"{site.name}: a map folded into the previous FeedForward needs a kept one before it, "
        "with nothing but dropped sites between them; use it with whole contiguous layers, not from layer 0 on"
    )


def output_projection(model: nn.Module, site: Site) -> str:
    """Returns the path of the linear layer whose output is what `site` adds to the stream.

    Raises:
        SubFitError: if there is no such layer (an output norm, experts, another kind of layer), or a coefficient.
    """
    if not ends_in_linear_layer(model, site):
        raise SubFitError(f"{site.name} does not end in a linear layer; nothing can be folded into it")
    if site.coefficient != 1:
        raise SubFitError(f"{site.name} is scaled by {site.coefficient:.4g} when it is added; nothing can be folded into it")
    assert site.output_projection is not None
    return site.output_projection


def ends_in_linear_layer(model: nn.Module, site: Site) -> bool:
    """Whether what `site` adds to the stream is what a linear layer gives: it has no output norm, and is no mixture."""
    path = site.output_projection
    return site.output_norm is None and path is not None and isinstance(model.get_submodule(path), nn.Linear)


@torch.no_grad()
def folded(model: nn.Module, linear: Any, change: Any) -> nn.Linear:
    """Returns a copy of a model's linear layer that gives y + change(y) where it gave y; `change` has no bias."""
    weight = change.weight.T.double()
    weight = torch.eye(len(weight), dtype=torch.float64, device=weight.device) + weight
    bias = None if linear.bias is None else full_tensor(linear.bias).double() @ weight
    return linear_like(model, linear, weight.T @ full_tensor(linear.weight).double(), bias)


@torch.no_grad()
def linear_like(model: nn.Module, linear: Any, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Returns a linear layer of the shape and type of another of a model, with a weight and a bias of its own, rounded."""
    other = placed(nn.Linear(linear.in_features, linear.out_features, bias is not None), model, linear.weight)
    other.weight.copy_(rounded(weight, rounding_of(model)))
    if bias is not None:
        other.bias.copy_(rounded(bias, rounding_of(model)))
    return other
