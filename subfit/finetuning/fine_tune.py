"""Fine-tuning: all that was fitted is trained by gradients, towards the dense model; optional, after the closed-form fit."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.evaluation.comparison import Comparison
from subfit.finetuning.callbacks import KeepBest, Progress
from subfit.finetuning.closed_form import closed_form
from subfit.finetuning.data_module import DistillationData, held_out
from subfit.finetuning.distillation import Distillation
from subfit.finetuning.isolation import interruptible, kept_open, processes_of, quiet
from subfit.finetuning.lora import Adapters
from subfit.finetuning.resuming import LastState, OtherRun, check_state, run_identity
from subfit.finetuning.settings import FineTuning, LoRA
from subfit.finetuning.trainer import make_trainer
from subfit.model.replacing import Switch, switched_off
from subfit.tracking.loggers import Log


def fine_tune(
    calibration: Calibration, switches: list[Switch], settings: FineTuning, log: Log, training: Tensor | None = None
) -> dict[str, Any]:
    """Trains the bypasses of a model, in place, to where its held-out divergence from the dense model is lowest.

    Where the closed-form fit is best, it stays. Where training fails, whatever the reason, the best weights so far stay.
    Bypasses at the sites and refitted output projections are trained, not maps folded into other weights, nor retrained
    layers.

    Args:
        switches: the replacements and refitted projections, all on; if there are adapters, they are added at the end.
        log: where training curves go, where the state to resume from is kept, and what to resume.
        training: (windows, length), tokens to train on and to judge by; those of the calibration, if not given.

    Returns:
        The record, as plain data: `kept` ("fine-tuned" or "closed-form"), `step` after which the kept weights were reached,
        `kl_before` and `kl_after`, the `curve` of `KeepBest`, `stopped` with a reason if training ended early, and
        `trained_parameters`.
    """
    record = closed_form()
    tokens = calibration.tokens if training is None else training
    with _failure_recorded(record), _adapters(calibration, switches, settings.lora, record, tokens):
        module = Distillation(calibration.model, switches, settings)
        best = KeepBest(module.master_weights)
        try:
            with _failure_recorded(record):
                _train(calibration, switches, module, settings, best, log, tokens)
        finally:
            module.restore(best.weights)
        before = best.curve[0]["kl"] if best.curve else None
        record |= {"step": best.step, "kl_before": before, "kl_after": best.lowest, "curve": best.curve}
        record["trained_parameters"] = sum(weight.numel() for weight in module.master_weights)
    if record["step"]:
        record["kept"] = "fine-tuned"
    elif record["stopped"] is None:
        print("fine-tuning has not improved the held-out divergence: the closed-form fit is kept", file=sys.stderr)
    return record


def _train(
    calibration: Calibration,
    switches: list[Switch],
    module: Distillation,
    settings: FineTuning,
    best: KeepBest,
    log: Log,
    tokens: Tensor,
) -> None:
    """Trains with Lightning, from the closed-form fit or from where an interrupted run was; evaluates first and last."""
    data = DistillationData(tokens, settings.batch_size, torch.initial_seed())
    callbacks: list[Callback] = [best, Progress()]
    if settings.patience is not None:
        callbacks.append(EarlyStopping("validation/kl", patience=settings.patience))
    if log.folder is not None or log.resume is not None:
        identity = run_identity(calibration, switches, module.master_weights, log.configuration, tokens)
        if log.resume is not None:
            check_state(log.resume, identity)
        if log.folder is not None:
            callbacks.append(LastState(log.folder, identity))
    with quiet(), interruptible(), kept_open(log.loggers), processes_of(settings.trainer["strategy"]):
        trainer = make_trainer(settings, calibration.device, callbacks, log.loggers)
        if log.resume is None:
            trainer.validate(module, datamodule=data, verbose=False)
        trainer.fit(module, datamodule=data, ckpt_path=log.resume, weights_only=True)
        if best.curve[-1]["step"] < trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)


@contextmanager
def _failure_recorded(record: dict[str, Any]) -> Iterator[None]:
    """Within the context, an error ends the fine-tuning, not the run: it is shown, and the record says what it was."""
    try:
        yield
    except OtherRun:
        raise
    except Exception as error:
        expected = isinstance(error, SubFitError | OSError)
        if not expected:
            traceback.print_exc()
        lines = str(error).splitlines() or [""]
        record["stopped"] = str(error) if expected else f"{type(error).__name__}: {lines[0]}"
        print(f"fine-tuning stopped: {record['stopped']}; the best weights so far are kept", file=sys.stderr)


@contextmanager
def _adapters(
    calibration: Calibration, switches: list[Switch], settings: LoRA | None, record: dict[str, Any], tokens: Tensor
) -> Iterator[None]:
    """Within the context, the last layers have adapters, among the switches. They are merged into the weights afterwards,
    unless nothing was gained, or less than the rounding of the merged weights: then they, and what was trained, are gone."""
    if settings is None:
        yield
        return
    fitted = [module for switch in switches for module in switch.trainable()]
    closed_form = [(p, p.detach().clone()) for module in fitted for p in module.parameters()]
    adapters = Adapters(calibration.model, settings, fitted)
    adapters.on()
    switches.append(adapters)
    merged = False
    try:
        yield
        if record["step"]:
            adapters.merge()
            record["kl_after"] = _divergence(calibration.model, tokens[held_out(len(tokens))], switches)
            merged = record["kl_after"] < record["kl_before"]
    finally:
        if not merged:
            adapters.off()
            switches.remove(adapters)
            for parameter, value in closed_form:
                parameter.data.copy_(value)
            record |= {"step": 0, "kl_after": record["kl_before"]}


def _divergence(model: nn.Module, tokens: Tensor, switches: list[Switch]) -> float:
    """The divergence from the dense model on some tokens."""
    with switched_off(switches):
        comparison = Comparison(model, tokens)
    kl: float = comparison.measure(switches)["kl"]
    return kl
