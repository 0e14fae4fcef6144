"""Trains all bypasses of a model together, towards the dense model that it was: what Lightning is told of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from subfit.errors import SubFitError
from subfit.finetuning.chunked_loss import distillation_loss
from subfit.finetuning.fine_tune import FineTuning
from subfit.finetuning.master_weights import MasterWeights
from subfit.model.replacing import Replacement, Switch, switched_off
from subfit.model.submodules import decoder_layers


class Distillation(LightningModule):
    """Brings a model with replacements nearer to itself without them.

    Teacher and student are one model. It is not a part of this module, whose parameters, and checkpoints, are the masters
    of the bypasses' alone.

    Args:
        model: a causal language model of transformers, with the replacements on.
        switches: its replacements, and its adapters, if it has any.
        masters: the parameters to train.
        settings: losses and schedule.
        identity: says which model, selection and tokens this is; kept in every checkpoint.
    """

    def __init__(
        self, model: Any, switches: Sequence[Switch], masters: MasterWeights, settings: FineTuning, identity: dict[str, Any]
    ):
        super().__init__()
        self.masters = masters
        self._shared = (model, switches)  # in a tuple: not registered here
        self._settings, self._identity = settings, identity
        self._changed = sorted({switch.site.layer for switch in switches if isinstance(switch, Replacement)})

    def training_step(self, tokens: Tensor, index: int) -> Tensor:
        """Returns the loss of some windows (windows, length)."""
        loss, (kl, next_token, _) = self._losses(tokens)
        if not loss.isfinite():
            raise SubFitError(f"the loss of step {self.global_step + 1} is {float(loss)}; try a lower learning_rate")
        found = {"training/loss": loss.detach(), "training/kl": kl, "training/next_token": next_token}
        self.log_dict(found | {"learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss

    def validation_step(self, tokens: Tensor, index: int) -> None:
        """Adds some held-out windows to the mean divergence from the dense model, and to the ratio of perplexities."""
        _, (kl, own, dense) = self._losses(tokens)
        found = {"validation/kl": kl, "validation/log_ratio": own - dense}
        self.log_dict(found, batch_size=len(tokens), on_step=False, on_epoch=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not all(master.grad.isfinite().all() for master in self.masters if master.grad is not None):
            step = self.global_step + 1
            raise SubFitError(f"the gradient of step {step} has NaN or infinite values; try a lower learning_rate")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(
            self.masters.parameters(), self._settings.learning_rate, weight_decay=self._settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._settings.rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["subfit"] = self._identity

    def _losses(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss, and without gradient what `distances` returns besides."""
        model, switches = self._shared
        settings = self._settings
        with torch.no_grad(), switched_off(switches):
            teacher, dense = _run(model, tokens, self._changed)
        self.masters.show()
        with _recomputing(model, settings.gradient_checkpointing):
            student, moved = _run(model, tokens, self._changed)
        loss, terms = distillation_loss(model, student, teacher, tokens, settings.kl, settings.next_token)
        if settings.stream:
            errors = [_relative_error(after, goal) for after, goal in zip(moved, dense, strict=True)]
            loss = loss + settings.stream * torch.stack(errors).mean()
        return loss, terms


def _run(model: Any, tokens: Tensor, layers: list[int]) -> tuple[Any, list[Tensor]]:
    """Runs a model without its head; returns what it gives, and the stream after some layers, (windows, length, d) each."""
    after: list[Tensor] = []

    def see(layer: nn.Module, args: Any, output: Any) -> None:
        after.append(output[0] if isinstance(output, tuple) else output)

    _, found = decoder_layers(model)
    hooks = [found[index].register_forward_hook(see) for index in layers]
    try:
        return model.base_model(tokens, use_cache=False), after
    finally:
        for hook in hooks:
            hook.remove()


def _relative_error(stream: Tensor, goal: Tensor) -> Tensor:
    """Mean squared error of a stream, as a share of the mean square of what it should be; mean over windows."""
    wide = torch.promote_types(goal.dtype, torch.float32)
    stream, goal = stream.to(wide), goal.to(wide)
    return ((stream - goal).square().mean((1, 2)) / goal.square().mean((1, 2))).mean()


@contextmanager
def _recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within the context, a decoder layer keeps only what enters it, and runs again for the backward pass."""
    layers = list(decoder_layers(model)[1]) if wanted else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
