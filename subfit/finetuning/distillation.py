"""The LightningModule that trains all that was fitted together, by distillation from the dense model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from subfit.errors import SubFitError
from subfit.finetuning.losses import Batch, distillation_loss, find_loss, stream_error
from subfit.finetuning.master_weights import MasterWeights
from subfit.finetuning.optimization import optimizers
from subfit.finetuning.settings import FineTuning
from subfit.finetuning.unchanged_layers import UnchangedLayers
from subfit.model.dtypes import rounding_of
from subfit.model.replacing import Replacement, Switch, switched_off
from subfit.model.submodules import decoder_layers


class Distillation(LightningModule):
    """Trains a model with replacements to give the next-token distributions of the model without them.

    Teacher and student are one model, with the replacements off and on. The model is not registered in this module: its
    parameters and checkpoints are float32 master weights of what is trained alone: the bypasses, the output projections that
    were refitted, and the adapters. During training, the model's own parameters get no gradients; afterwards, and after an
    error, the model has the trained weights.

    It works in any Trainer that counts in steps:

        import lightning
        from subfit.calibration.capture import Calibration
        from subfit.finetuning import Distillation, DistillationData
        from subfit.pipeline import fit_recipe

        replacements, record = fit_recipe(Calibration(model, tokens), recipe)  # tokens: (windows, length)
        module = Distillation(model, replacements)
        trainer = lightning.Trainer(max_steps=200, gradient_clip_val=1.0)
        trainer.fit(module, datamodule=DistillationData(tokens))

    It logs `training/loss` and each loss by its name, and, of held-out windows, `validation/kl` (the mean divergence from
    the dense model, in nats) and `validation/log_ratio` (the logarithm of the ratio of perplexities).

    Args:
        model: a causal language model of transformers, with the replacements on; it moves to the Trainer's device.
        switches: its replacements, its refitted projections, and its adapters, if it has any.
        settings: losses, optimiser and schedule; arguments of the Trainer in it have no effect here.

    Attributes:
        master_weights: the parameters that are trained, in float32 if the model's are narrower.

    Raises:
        SubFitError: if the replacements have no parameters, or a loss cannot be found.
    """

    def __init__(self, model: Any, switches: Sequence[Switch], settings: FineTuning | None = None):
        super().__init__()
        self._settings = settings or FineTuning()
        self._further = {name: (find_loss(name), weight) for name, weight in self._settings.losses.items()}
        trained = (module for switch in switches for module in switch.trainable())
        self.master_weights = MasterWeights(trained, rounding_of(model))
        if not len(self.master_weights):
            raise SubFitError("no bypass has parameters of its own at its site: there is nothing to fine-tune")
        self._shared = (model, switches)  # in a tuple: not registered here
        self._changed = sorted({switch.site.layer for switch in switches if isinstance(switch, Replacement)})
        self._unchanged = UnchangedLayers(model, switches)
        self._frozen: list[nn.Parameter] = []

    def setup(self, stage: str) -> None:
        """Moves the model to the Trainer's device and freezes its parameters."""
        self._shared[0].to(self.device)
        self._frozen += [parameter for parameter in self._shared[0].parameters() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def configure_callbacks(self) -> list[Callback]:
        return [_RestoreOnException()]

    def training_step(self, tokens: Tensor, index: int) -> Tensor:
        """Returns the loss of some windows (windows, length).

        Raises:
            SubFitError: if it is not finite.
        """
        loss, parts = self._losses(tokens)
        if not loss.isfinite():
            raise SubFitError(f"the loss of step {self.global_step + 1} is {float(loss)}; try a lower learning_rate")
        found = {f"training/{name}": value for name, value in parts.items() if name != "teacher_next_token"}
        found |= {"training/loss": loss.detach(), "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        self.log_dict(found)
        return loss

    def validation_step(self, tokens: Tensor, index: int) -> None:
        """Adds some held-out windows to the mean divergence from the dense model, and to the ratio of perplexities."""
        _, parts = self._losses(tokens)
        found = {"validation/kl": parts["kl"], "validation/log_ratio": parts["next_token"] - parts["teacher_next_token"]}
        self.log_dict(found, batch_size=len(tokens), on_step=False, on_epoch=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not all(weight.grad.isfinite().all() for weight in self.master_weights if weight.grad is not None):
            step = self.global_step + 1
            raise SubFitError(f"the gradient of step {step} has NaN or infinite values; try a lower learning_rate")

    def configure_optimizers(self) -> Any:
        return optimizers(self._settings, self.master_weights.parameters(), self.trainer)

    def teardown(self, stage: str) -> None:
        self.restore(self.master_weights.values())

    def restore(self, values: list[Tensor]) -> None:
        """Gives the model its own parameters back, with these values of the master weights."""
        self.master_weights.restore(values)
        while self._frozen:
            self._frozen.pop().requires_grad_(True)

    def _losses(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses of some windows, and each of them by name, without gradient."""
        batch, settings = self._run(tokens), self._settings
        loss, (kl, next_token, teacher) = distillation_loss(batch, settings.kl, settings.next_token)
        parts = {"kl": kl, "next_token": next_token, "teacher_next_token": teacher}
        further = {"stream": (stream_error, settings.stream)} if settings.stream else {}
        for name, (function, weight) in {**further, **self._further}.items():
            found = function(batch)
            loss, parts[name] = loss + weight * found, found.detach()
        return loss, parts

    def _run(self, tokens: Tensor) -> Batch:
        model, switches = self._shared
        with torch.no_grad(), switched_off(switches), self._unchanged.kept():
            teacher, teacher_stream = _run_body(model, tokens, self._changed)
        self.master_weights.use()
        recomputed = decoder_layers(model)[1][self._unchanged.count :] if self._settings.gradient_checkpointing else ()
        with self._unchanged.passed_through(), _recomputing(recomputed):
            student, student_stream = _run_body(model, tokens, self._changed)
        return Batch(model, tokens, student, teacher, student_stream, teacher_stream)


class _RestoreOnException(Callback):
    """Restores the model after an exception, of which Lightning tells callbacks, but not modules."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        pl_module.teardown("fit")


def _run_body(model: Any, tokens: Tensor, layers: list[int]) -> tuple[Any, list[Tensor]]:
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


@contextmanager
def _recomputing(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context, each of these layers keeps only what enters it, and runs again for the backward pass."""
    layers = list(layers)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
