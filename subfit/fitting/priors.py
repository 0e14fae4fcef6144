"""What the map of a bypass is drawn to instead of to zero, found by running the branch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.fitting.layers import ROUNDING
from subfit.model.activations import Branch, watch
from subfit.model.recording import probe_tokens
from subfit.model.residual_stream import ResidualStream
from subfit.model.submodules import first_tensor

RANDOM = 64  # inputs on which a map is checked
BATCH = 512  # windows run at once


def check_prior(prior: str, reads: str) -> None:
    """Raises SubFitError if a bypass that `reads` the stream, not the branch's input, is drawn to the branch's weights."""
    if prior == "weights" and reads != "input":
        raise SubFitError(f"prior: weights is a map of the branch's normed input, and the bypass reads: {reads}; use input")


@torch.no_grad()
def own_map(branch: Branch) -> Tensor:
    """Returns W_V W_O of an Attention, (d, d) in float64: what it computes of a token that attends to itself alone.

    HARP (arXiv 2507.01900) puts this map in its place. Where query heads share keys and values, the columns of W_V are
    repeated for each of them. The map is found by running the Attention on windows of a single token, so that it does not
    matter how its weights are stored; what it gives of zero, its bias, is left out.

    Raises:
        SubFitError: if the site is no Attention, or what it computes of a single token is not linear.
    """
    site, weight = branch.site, next(branch.core.parameters())
    if site.kind != "attention":
        raise SubFitError(f"prior: weights is for Attentions, and {site.name} is none; use prior: zero there")
    size = site.width**0.5  # of a normed input; small ones would be lost beside the bias
    generator = torch.Generator().manual_seed(0)
    parts = [torch.zeros(1, site.width), size * torch.eye(site.width), torch.randn(RANDOM, site.width, generator=generator)]
    inputs = torch.cat(parts).to(weight.device, weight.dtype)
    gave = torch.cat(list(_run_alone(branch, inputs)))
    bias, one_by_one, others = gave.split([1, site.width, RANDOM])
    found = (one_by_one - bias) / inputs[1, 0].double()
    if not (others - bias - inputs[-RANDOM:].double() @ found).norm() <= ROUNDING * others.norm():
        name = type(branch.core).__name__
        raise SubFitError(f"prior: weights: {site.name} ({name}) is no linear map of a single token; use prior: zero there")
    return found


def _run_alone(branch: Branch, inputs: Tensor) -> Iterator[Tensor]:
    """Yields what a branch gives of the inputs (windows, d), each a window of its own, in float64, batch by batch."""
    stream = ResidualStream(branch.model, probe_tokens(branch.model, len(inputs)).T, BATCH)
    stream.position = branch.site.layer
    batches = iter(inputs.split(BATCH))

    def put(core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        read = first_tensor(args, kwargs)
        x = next(batches).reshape(read.shape).to(read)
        return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, next(iter(kwargs)): x})

    handle = branch.core.register_forward_pre_hook(put, with_kwargs=True)
    try:
        for batch in stream.batches:
            with watch(branch.model, branch.site, until="y") as seen:
                stream.apply(stream.layers[stream.position], stream.hidden[batch])
            yield seen.y.reshape(-1, branch.site.width).double()
    finally:
        handle.remove()
