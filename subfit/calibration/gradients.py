"""Gradients of a loss with respect to what passes the sites."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor

from subfit.model.activations import Activations, watch
from subfit.model.offloading import check_resident
from subfit.model.submodules import Site


def gradients_at_sites(
    model: Any,
    sites: Sequence[Site],
    tokens: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    of: Literal["y", "hidden"] = "y",
) -> Iterator[list[tuple[Activations, Tensor]]]:
    """Yields for each window what passes each site, and the gradient of a loss with respect to one of its tensors.

    Only activations have gradients; those of one window at a time are held, for all layers.

    Args:
        tokens: (windows, length), on the model's device.
        loss: of the logits (length, vocabulary), in float32, and the tokens (length) of a window.
        of: which tensor, see `Activations`.

    Raises:
        SubFitError: if the weights are on the disk.
    """
    check_resident(model, "a gradient")
    trained = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        seen = [stack.enter_context(watch(model, site)) for site in sites]
        embedding = model.get_input_embeddings().register_forward_hook(lambda m, args, out: out.requires_grad_())
        stack.callback(embedding.remove)
        stack.callback(lambda: [p.requires_grad_() for p in trained])
        for p in trained:
            p.requires_grad_(False)
        for window in tokens:
            with torch.enable_grad():
                value = loss(model(window[None], use_cache=False).logits[0].float(), window)
                gradients = torch.autograd.grad(value, [getattr(passed, of) for passed in seen])
            yield list(zip(seen, gradients, strict=True))
