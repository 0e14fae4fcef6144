"""Layers that fitted bypasses are made of, and how large they may be."""

from typing import Literal

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.model.activations import Branch
from subfit.model.modeling_subfit import Scale

UNSEEN = 1e-3  # what a norm multiplies by a smaller share of its largest factor does not matter
ROUNDING = 0.02  # of what a layer gives, in bfloat16, is well below this share of it


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


@torch.no_grad()
def output_norm_of(branch: Branch, tokens: int = 64) -> nn.RMSNorm | None:
    """Returns the RMSNorm of torch that gives what the output norm of a branch gives; None if there is none like it."""
    if branch.site.output_norm is None:
        return None
    norm, width = branch.model.get_submodule(branch.site.output_norm), branch.site.width
    eps = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), None)
    with branch.present():
        weight = next(branch.core.parameters())
        x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
        wanted, of_ones = norm(x).float(), norm(torch.ones_like(x[:1]))[0]
    like = nn.RMSNorm(width, eps, device=x.device)
    like.weight.copy_(of_ones * (1 + (like.eps or 0.0)) ** 0.5)
    return like if (like(x.float()) - wanted).norm() < ROUNDING * wanted.norm() else None


def before_output_norm(norm: nn.RMSNorm, gave: Tensor, y: Tensor) -> Tensor:
    """Returns what is to go into an output norm so that it gives y, to first order in the change of direction, (..., d).

    It has the scale of what goes into it now. Nothing changes in a dimension that the norm multiplies by almost nothing.

    Args:
        gave: (..., d), what goes into it now.
        y: (..., d).
    """
    gave, gain = gave.float(), norm.weight.float()
    scale = (gave.square().mean(-1, keepdim=True) + (norm.eps or 0.0)).sqrt()
    seen = gain.abs() > UNSEEN * gain.abs().max()
    return gave + scale * torch.where(seen, (y.float() - norm(gave)) / gain, 0.0)


def scale_layer(weight: Tensor, bias: Tensor) -> Scale:
    """Returns the layer that maps rows x to x * weight + bias; `weight` is (d), or () for one factor."""
    layer = Scale(len(bias), weight.numel()).to(weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
