"""Fine-tuning: all bypasses trained together by gradients, towards the dense model; optional, after the closed-form fit."""

import hashlib
import logging
import pickle
import signal
import sys
import warnings
from dataclasses import asdict, dataclass, field
from math import cos, pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.evaluation.comparison import Comparison
from subfit.finetuning.lora import Adapters, LoRA
from subfit.model.processes import destroy_process_group, full_tensor
from subfit.model.replacing import Replacement, Switch, switched_off
from subfit.tracking.loggers import Log

if TYPE_CHECKING:
    from subfit.finetuning.callbacks import KeepBest
    from subfit.finetuning.master_weights import MasterWeights


@dataclass(kw_only=True)
class TrainerFlags:
    """Flags of Lightning's Trainer.

    Attributes:
        max_steps: steps of the optimiser.
        val_check_interval: steps from one look at the held-out windows to the next; the state to resume from is saved then.
        accumulate_grad_batches: batches of a step.
        gradient_clip_val: largest norm of the gradient of a step.
        precision: `32-true`, or `bf16-mixed` to compute in bfloat16 where the model's weights are float32.
        devices: processes, each with a device of its own.
        strategy: how several processes share the work, such as `ddp`.
        log_every_n_steps: steps from one point of the logged training curves to the next.
    """

    max_steps: int = 200
    val_check_interval: int = 20
    accumulate_grad_batches: int = 1
    gradient_clip_val: float = 1.0
    precision: str = "32-true"
    devices: int = 1
    strategy: str = "auto"
    log_every_n_steps: int = 1


@dataclass(kw_only=True)
class FineTuning:
    """How bypasses are trained, on the calibration windows; every tenth of these is held out, to judge by.

    Attributes:
        trainer: flags of Lightning's Trainer.
        learning_rate: the highest, of AdamW.
        weight_decay: of AdamW.
        warmup: share of the steps in which the learning rate rises; it then falls to 0 along a cosine.
        batch_size: windows in a batch, of all processes together.
        kl: weight of the divergence from the dense model's next-token distribution.
        stream: weight of the mean squared error of the residual stream after each changed layer, as a share of its mean
            square.
        next_token: weight of the plain next-token loss.
        patience: looks at the held-out windows without an improvement after which training stops.
        gradient_checkpointing: whether to run each layer a second time instead of keeping what is in it: less memory.
        lora: adapters of the last layers, trained as well and merged into their weights at the end; none, if not given.
    """

    trainer: TrainerFlags = field(default_factory=TrainerFlags)
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.05
    batch_size: int = 4
    kl: float = 1.0
    stream: float = 0.0
    next_token: float = 0.0
    patience: int | None = None
    gradient_checkpointing: bool = False
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        flags = self.trainer
        for name, value in {**asdict(flags), **asdict(self)}.items():
            if name in ("max_steps", "val_check_interval", "accumulate_grad_batches", "devices", "batch_size") and value < 1:
                raise SubFitError(f"finetune: {name} is {value}; it must be at least 1")
        weights = self.kl, self.stream, self.next_token
        if not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise SubFitError("finetune: kl, stream and next_token are weights: none below 0, and one of them above")
        if not self.learning_rate > 0 or not 0 <= self.warmup <= 1:
            raise SubFitError("finetune: learning_rate must be above 0, and warmup from 0 to 1")

    def rate_at(self, step: int) -> float:
        """Returns the learning rate at a step, as a share of the highest."""
        steps = self.trainer.max_steps
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + cos(pi * (step - rising) / max(steps - rising, 1))) / 2


def fine_tune(
    calibration: Calibration,
    switches: list[Switch],
    settings: FineTuning,
    log: Log,
) -> dict[str, Any]:
    """Trains the bypasses of a model, in place, to where its held-out divergence from the dense model is lowest.

    Where the closed-form fit is best, or training fails, the closed-form fit stays. What is trained is what stands at the
    sites: a bypass that is merged into another site, and a retrained layer, stay as they are.

    Args:
        switches: the replacements, all on; if there are adapters, they are added at the end.
        log: where training curves go, where the state to resume from is kept, and what to resume.

    Returns:
        The record, as plain data: `kept` ("fine-tuned" or "closed-form"), `step` after which the kept weights were reached,
        `kl_before` and `kl_after`, the `curve` of `KeepBest`, `stopped` with a reason if training ended early, and
        `trained_parameters`.
    """
    from subfit.finetuning.callbacks import KeepBest
    from subfit.finetuning.master_weights import MasterWeights, frozen

    adapters = None
    if settings.lora is not None:
        adapters = Adapters(calibration.model, settings.lora, [module for s in switches for module in s.trainable()])
        adapters.on()
        switches.append(adapters)
    masters = MasterWeights(module for switch in switches for module in switch.trainable())
    kept, start = KeepBest(masters), masters.values() if adapters else []
    stopped = None
    try:
        if not len(masters):
            raise SubFitError("no bypass has parameters of its own at its site: there is nothing to fine-tune")
        with frozen(calibration.model):
            _train(calibration, switches, settings, masters, kept, log)
    except (SubFitError, OSError) as error:
        stopped = str(error)
        print(f"fine-tuning stopped: {stopped}; the best weights so far are kept", file=sys.stderr)
    finally:
        masters.leave(kept.best)
    after = kept.lowest
    if adapters is not None and kept.step:
        adapters.merge()
        after = _divergence(calibration, switches)
        if not after < kept.curve[0]["kl"]:  # what was gained was less than the rounding of the weights
            kept.step, after = 0, kept.curve[0]["kl"]
            masters.leave(start)
    if adapters is not None and not kept.step:
        adapters.off()
        switches.remove(adapters)
    if kept.step == 0 and stopped is None:
        print("fine-tuning has not improved the held-out divergence: the closed-form fit is kept", file=sys.stderr)
    return {
        "kept": "fine-tuned" if kept.step else "closed-form",
        "step": kept.step,
        "kl_before": kept.curve[0]["kl"] if kept.curve else None,
        "kl_after": after,
        "stopped": stopped,
        "trained_parameters": sum(master.numel() for master in masters),
        "curve": kept.curve,
    }


def _train(
    calibration: Calibration,
    switches: list[Switch],
    settings: FineTuning,
    masters: "MasterWeights",
    kept: "KeepBest",
    log: Log,
) -> None:
    """Trains the masters with Lightning."""
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    from subfit.finetuning.callbacks import Progress
    from subfit.finetuning.data_module import DistillationData
    from subfit.finetuning.distillation import Distillation

    identity = _identity(calibration, switches, masters)
    if log.resume is not None:
        _check_checkpoint(log.resume, identity)
    flags = asdict(settings.trainer)
    batches = flags["max_steps"] * flags["accumulate_grad_batches"]
    interval = min(flags.pop("val_check_interval") * flags["accumulate_grad_batches"], batches)
    data = DistillationData(calibration.tokens, settings.batch_size, batches, torch.initial_seed())
    callbacks: list[Callback] = [kept, Progress()]
    if settings.patience is not None:
        callbacks.append(EarlyStopping("validation/kl", patience=settings.patience))
    if log.folder is not None:
        options: dict[str, Any] = {"save_on_train_epoch_end": False, "enable_version_counter": False}
        callbacks.append(ModelCheckpoint(log.folder, "last", **options))
    device = calibration.device
    if flags["devices"] == 1 and device.index is not None:
        flags["devices"] = [device.index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers, and loaders that cannot be resumed: ours are
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            val_check_interval=interval,
            check_val_every_n_epoch=None,
            callbacks=callbacks,
            enable_checkpointing=log.folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,
            logger=log.curves(),
            **flags,
        )
        module = Distillation(calibration.model, switches, masters, settings, identity)
        try:
            if log.resume is None:
                trainer.validate(module, datamodule=data, verbose=False)
            trainer.fit(module, datamodule=data, ckpt_path=log.resume, weights_only=True)
            if kept.curve[-1]["step"] < trainer.global_step:
                trainer.validate(module, datamodule=data, verbose=False)
        except SystemExit as leaving:  # which is what Lightning makes of Ctrl+C
            if isinstance(leaving.__context__, KeyboardInterrupt):
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from None
            raise
        finally:
            if flags["strategy"] != "auto" and not torch.distributed.is_torchelastic_launched():
                destroy_process_group()


def _divergence(calibration: Calibration, switches: list[Switch]) -> float:
    """The divergence from the dense model on the windows that are held out."""
    from subfit.finetuning.data_module import held_out

    with switched_off(switches):
        comparison = Comparison(calibration.model, calibration.tokens[held_out(len(calibration.tokens))])
    return comparison.measure(switches)["kl"]


def _identity(calibration: Calibration, switches: list[Switch], masters: "MasterWeights") -> dict[str, Any]:
    """What a run and the one that it resumes must have in common."""
    weights = hashlib.sha256()
    with switched_off(switches):
        for parameter in calibration.model.parameters():
            weights.update(_bytes(full_tensor(parameter.detach()).flatten()[:1024].float()))
    return {
        "model": weights.hexdigest(),
        "selection": [switch.site.name for switch in switches if isinstance(switch, Replacement)],
        "bypasses": [list(master.shape) for master in masters],
        "calibration": hashlib.sha256(_bytes(calibration.tokens)).hexdigest(),
    }


def _check_checkpoint(path: str, identity: dict[str, Any]) -> None:
    """Raises SubFitError unless a file is the checkpoint of a run with this identity."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)["subfit"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise SubFitError(f"the checkpoint {path} cannot be read: {type(error).__name__}") from error
    for what, own in identity.items():
        if found.get(what) != own:
            raise SubFitError(f"the checkpoint {path} is of another run: its {what} differs")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().numpy().tobytes()
