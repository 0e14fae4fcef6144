"""Callbacks of a fine-tuning: they keep the best weights, and show progress."""

import time
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from subfit.evaluation.divergence import exp
from subfit.finetuning.master_weights import MasterWeights
from subfit.fitting.best_state import BestState
from subfit.progress import Stage


class KeepBest(Callback):
    """Remembers the weights with which the divergence of held-out windows was lowest; the closed-form fit counts too.

    Attributes:
        step: the step after which these weights were reached; 0 for the closed-form fit.
        curve: for each evaluation of the held-out windows, the step; the tokens that were trained on so far, and the minutes
            that this took, without the evaluations; the mean training loss since the evaluation before; the divergence in
            nats, and the ratio of the perplexity to the dense model's.
    """

    def __init__(self, weights: MasterWeights):
        self._best = BestState(weights.values)
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._tokens, self._minutes, self._started = 0, 0.0, 0.0

    @property
    def lowest(self) -> float | None:
        """The divergence at `step`, None before the first evaluation."""
        return self._best.lowest

    @property
    def weights(self) -> list[Tensor]:
        """The best weights, as `MasterWeights.values`."""
        return self._best.state

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Tensor, index: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Tensor, index: int) -> None:
        self._losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self._tokens += batch.numel() * trainer.world_size
        self._minutes += (time.perf_counter() - self._started) / 60

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        module.log_dict({"training/tokens": float(self._tokens), "training/minutes": self._minutes})

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        kl = float(trainer.callback_metrics["validation/kl"])
        training = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        if self._best.update(kl):
            self.step = trainer.global_step
        ratio = exp(float(trainer.callback_metrics["validation/log_ratio"]))
        so_far = {"step": trainer.global_step, "tokens": self._tokens, "minutes": round(self._minutes, 4)}
        self.curve.append({**so_far, "training_loss": training, "kl": kl, "ratio": ratio})

    def state_dict(self) -> dict[str, Any]:
        so_far = {"tokens": self._tokens, "minutes": self._minutes}
        return {"step": self.step, "best": self.weights, "lowest": self.lowest, "curve": self.curve, **so_far}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.curve, self._best.lowest = state["step"], state["curve"], state["lowest"]
        self._tokens, self._minutes = state["tokens"], state["minutes"]
        self._best.state = [value.to(own.device) for value, own in zip(state["best"], self._best.state, strict=True)]


class Progress(Callback):
    """Shows the steps, and the latest training loss."""

    def __init__(self) -> None:
        self._context = ExitStack()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stage = Stage("fine-tuning", trainer.max_steps, "steps", done=trainer.global_step)
        if trainer.is_global_zero:
            self._context.enter_context(self._stage)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        self._stage.note = f"loss {float(outputs['loss']) * trainer.accumulate_grad_batches:.4f}"
        self._stage.advance(trainer.global_step - self._stage.done)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._context.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._context.close()
