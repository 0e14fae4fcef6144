"""Gradient descent on what a bypass reads and what it is to give."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm.auto import trange

CHECKS = 20  # times that the held-out rows are looked at during training


def fit_by_gradient(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    steps: int,
    learning_rate: float,
    batch: int,
    seed: int,
) -> None:
    """Trains a module in place, to where it is best on a tenth of the tokens that it is not trained on.

    Where it starts counts too, so it never gets worse on them, even if training diverges; with fewer than ten tokens there
    is nothing to judge by, and it stays as it is.

    Args:
        loss: the mean loss of the module on some of the inputs and targets.
        inputs, targets: (tokens, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    held, kept = (part.to(inputs.device) for part in order.tensor_split([len(inputs) // 10]))
    if not len(held):
        return

    @torch.no_grad()
    def held_out() -> float:
        parts = held.split(batch)
        return sum(float(loss(inputs[part], targets[part])) * len(part) for part in parts) / len(held)

    lowest, best = held_out(), copy.deepcopy(module.state_dict())
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in trange(1, steps + 1, desc="train", unit="step", leave=False):
        chosen = kept[torch.randint(len(kept), (batch,), generator=generator).to(kept.device)]
        optimizer.zero_grad()
        loss(inputs[chosen], targets[chosen]).backward()
        optimizer.step()
        schedule.step()
        if step % max(steps // CHECKS, 1) == 0 or step == steps:
            error = held_out()
            if error < lowest:  # never for NaN
                lowest, best = error, copy.deepcopy(module.state_dict())
    module.load_state_dict(best)
