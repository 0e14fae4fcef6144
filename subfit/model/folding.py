"""Merging a linear map of what a FeedForward adds into its output projection, so that it costs nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.model.processes import full_tensor
from subfit.model.submodules import Site, probe


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
        f"{site.name}: a bypass merged into the previous FeedForward needs a kept one before it, "
        "with nothing but dropped sites between them; use it with whole contiguous layers, not from layer 0 on"
    )


@torch.no_grad()
def output_projection(model: Any, site: Site) -> str:
    """Returns the path of the linear layer whose output is what `site` adds to the stream.

    Raises:
        SubFitError: if there is no such layer (an output norm, experts, another kind of layer).
    """
    core = model.get_submodule(site.path)
    gave: dict[str, torch.Tensor] = {}
    linears = [(name, module) for name, module in core.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(lambda m, a, out, name=name: gave.update({name: out})) for name, module in linears]
    last = core.register_forward_hook(lambda m, a, out: gave.update({"": out[0] if isinstance(out, tuple) else out}))
    try:
        probe(model)
    finally:
        for hook in (*hooks, last):
            hook.remove()
    found = [name for name in gave if name and gave[name] is gave[""]]
    if site.output_norm is not None or not found:
        raise SubFitError(f"{site.name} does not end in a linear layer; nothing can be merged into it")
    return f"{site.path}.{found[0]}"


@torch.no_grad()
def merged(linear: Any, change: Any) -> nn.Linear:
    """Returns a copy of the linear layer `linear` that gives y + change(y) where it gave y; `change` has no bias."""
    weight = change.weight.T.double()
    weight = torch.eye(len(weight), dtype=torch.float64, device=weight.device) + weight
    bias = None if linear.bias is None else full_tensor(linear.bias).double() @ weight
    return linear_like(linear, weight.T @ full_tensor(linear.weight).double(), bias)


@torch.no_grad()
def linear_like(linear: Any, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Returns a linear layer of the shape, device and data type of another, with a weight and a bias of its own."""
    other = nn.Linear(linear.in_features, linear.out_features, bias is not None)
    other.to(linear.weight.device, linear.weight.dtype).requires_grad_(False)
    other.weight.copy_(weight)
    if bias is not None:
        other.bias.copy_(bias)
    return other
