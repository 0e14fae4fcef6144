"""Callbacks of a fine-tuning: they keep the best weights, and show progress."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from subfit.evaluation.divergence import exp
from subfit.finetuning.master_weights import MasterWeights
from subfit.fitting.best_state import BestState


class KeepBest(Callback):
    """Remembers the weights with which the divergence of held-out windows was lowest; the closed-form fit counts too.

    Attributes:
        step: the step after which these weights were reached; 0 for the closed-form fit.
        curve: for each evaluation of the held-out windows, the step, the mean training loss since the one before, the
            divergence in nats, and the ratio of the perplexity to the dense model's.
    """

    def __init__(self, weights: MasterWeights):
        self._best = BestState(weights.values)
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self._losses: list[float] = []

    @property
    def lowest(self) -> float | None:
        """The divergence at `step`, None before the first evaluation."""
        return self._best.lowest

    @property
    def weights(self) -> list[Tensor]:
        """The best weights, as `MasterWeights.values`."""
        return self._best.state

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        self._losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        kl = float(trainer.callback_metrics["validation/kl"])
        training = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        if self._best.update(kl):
            self.step = trainer.global_step
        ratio = exp(float(trainer.callback_metrics["validation/log_ratio"]))
        self.curve.append({"step": trainer.global_step, "training_loss": training, "kl": kl, "ratio": ratio})

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "best": self.weights, "lowest": self.lowest, "curve": self.curve}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.curve, self._best.lowest = state["step"], state["curve"], state["lowest"]
        self._best.state = [value.to(own.device) for value, own in zip(state["best"], self._best.state, strict=True)]


class Progress(Callback):
    """A progress bar of the steps, on stderr."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        quiet: dict[str, Any] = {} if trainer.is_global_zero else {"disable": True}
        self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, desc="finetune", unit="step", **quiet)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        self._bar.set_postfix(loss=f"{float(outputs['loss']) * trainer.accumulate_grad_batches:.4f}", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()
