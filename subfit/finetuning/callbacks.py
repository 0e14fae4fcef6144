"""What happens beside the steps of a fine-tuning: the best weights are kept, and progress is shown."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from subfit.evaluation.divergence import exp
from subfit.finetuning.master_weights import MasterWeights


class KeepBest(Callback):
    """Remembers the weights with which the divergence of held-out windows was lowest; the closed-form fit counts too.

    Attributes:
        step: the step after which these weights were reached; 0 for the closed-form fit.
        best: the weights, as `MasterWeights.values`.
        curve: for each look at the held-out windows, the step, the mean training loss since the look before, the divergence
            in nats, and the ratio of the perplexity to the dense model's.
    """

    def __init__(self, masters: MasterWeights):
        self._masters = masters
        self.step, self.best = 0, masters.values()
        self.curve: list[dict[str, Any]] = []
        self._losses: list[float] = []

    @property
    def lowest(self) -> float | None:
        """The divergence at `step`."""
        return next((point["kl"] for point in self.curve if point["step"] == self.step), None)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        self._losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        kl = float(trainer.callback_metrics["validation/kl"])
        training = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        if self.lowest is not None and kl < self.lowest:  # never for NaN
            self.step, self.best = trainer.global_step, self._masters.values()
        ratio = exp(float(trainer.callback_metrics["validation/log_ratio"]))
        self.curve.append({"step": trainer.global_step, "training_loss": training, "kl": kl, "ratio": ratio})

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "best": self.best, "curve": self.curve}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best: list[Tensor] = state["best"]
        self.step, self.curve = state["step"], state["curve"]
        self.best = [value.to(master.device) for value, master in zip(best, self._masters, strict=True)]


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
