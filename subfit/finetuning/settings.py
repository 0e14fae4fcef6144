"""Settings of a fine-tuning. Neither torch nor Lightning is imported here: the help of the command line reads this file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from subfit.errors import SubFitError
from subfit.options.typed import check_fields

TRAINER: dict[str, Any] = {
    "max_steps": 200,
    "val_check_interval": 20,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": 1.0,
    "precision": "32-true",
    "devices": 1,
    "strategy": "auto",
    "log_every_n_steps": 1,
}
OWNED = {  # arguments of Trainer that follow from other options, or from how the training is organised
    "accelerator": "it follows the option device",
    "logger": "use the option logger",
    "max_epochs": "training is counted in max_steps",
    "min_epochs": "training is counted in max_steps",
    "check_val_every_n_epoch": "use val_check_interval",
    "reload_dataloaders_every_n_epochs": "training is one epoch",
    "overfit_batches": "use windows",
    "fast_dev_run": "use a small max_steps",
    "num_sanity_val_steps": "the held-out windows are evaluated before the first step",
    "enable_checkpointing": "the state is saved beside the output",
    "enable_progress_bar": "progress is shown on stderr",
    "enable_model_summary": "the record has the number of trained parameters",
    "inference_mode": "what validation leaves in the model must allow gradients",
    "use_distributed_sampler": "batches are divided among the processes already",
    "barebones": "the best weights are found by validation",
}


@dataclass(kw_only=True)
class LoRA:
    """Adapters (LoRA, arXiv 2106.09685) of every linear map that is kept in the last decoder layers.

    Attributes:
        layers: number of last layers.
        rank: of each adapter.
        alpha: an adapter adds alpha / rank times its product.
    """

    layers: int = 4
    rank: int = 8
    alpha: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layers < 1 or self.rank < 1 or self.alpha < 1:
            raise SubFitError("finetune.lora: layers and rank must be at least 1, and so must alpha")
        if find_spec("peft") is None:
            raise SubFitError("finetune.lora needs the package peft: pip install 'subfit[lora]'")


@dataclass(kw_only=True)
class FineTuning:
    """How bypasses and refitted projections are trained; every tenth window is held out, to judge by.

    What is a class of Lightning's or torch's is given as a mapping of `class_path` and `init_args`, or as an object.

    Attributes:
        trainer: arguments of `lightning.pytorch.Trainer`, over the defaults in `TRAINER`: `max_steps` (optimiser steps),
            `val_check_interval` (optimiser steps from one evaluation of the held-out windows to the next, when the state to
            resume from is saved as well), `callbacks`, `precision`, `devices`, `strategy`, `profiler` and any other, except
            those that SubFit sets itself: accelerator, logger, max_epochs, min_epochs, check_val_every_n_epoch,
            reload_dataloaders_every_n_epochs, overfit_batches, fast_dev_run, num_sanity_val_steps, enable_checkpointing,
            enable_progress_bar, enable_model_summary, inference_mode, use_distributed_sampler and barebones.
        windows: number of windows to train on: further ones of the calibration's sources, beside those to calibrate and to
            evaluate on. If not given, training is on the windows of the calibration.
        optimizer: a class of optimisers, or a function from parameters to an optimiser. A class is given `learning_rate` and
            `weight_decay`, unless its `init_args` have `lr` and `weight_decay`. AdamW, if not given.
        lr_scheduler: a class of schedules, or a function from an optimiser to one; it makes a step after each step of the
            optimiser, a ReduceLROnPlateau after each evaluation of the held-out windows (`validation/kl`). If not given, the
            learning rate rises during `warmup` and falls to 0 along a cosine.
        learning_rate: the highest.
        weight_decay: of the optimiser.
        warmup: share of the steps in which the learning rate rises; for the default schedule.
        batch_size: windows in a batch, of all processes together.
        kl: weight of the divergence from the dense model's next-token distribution.
        stream: weight of the mean squared error of the residual stream after each changed layer, as a share of its mean
            square.
        next_token: weight of the plain next-token loss.
        losses: weights of further losses, by dotted path (`package.module.function`) or by file (`path/losses.py:function`);
            see `subfit.finetuning.losses`.
        patience: evaluations of the held-out windows without an improvement after which training stops.
        gradient_checkpointing: whether to run each layer a second time instead of keeping what is in it: less memory.
        lora: adapters of the last layers, trained as well and merged into their weights at the end; none, if not given.

    Raises:
        SubFitError: if a number is out of its range, or SubFit sets an argument of the Trainer itself.
    """

    trainer: dict[str, Any] = field(default_factory=lambda: dict(TRAINER))
    windows: int | None = None
    optimizer: str | dict[str, Any] | Callable[..., Any] | None = None
    lr_scheduler: str | dict[str, Any] | Callable[..., Any] | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.05
    batch_size: int = 4
    kl: float = 1.0
    stream: float = 0.0
    next_token: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    patience: int | None = None
    gradient_checkpointing: bool = False
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in OWNED.keys() & self.trainer.keys():
            raise SubFitError(f"finetune.trainer: {name} is set by SubFit: {OWNED[name]}")
        self.trainer = {**TRAINER, **self.trainer}
        counts = {name: self.trainer[name] for name in ("max_steps", "accumulate_grad_batches")}
        for name, value in {**counts, "batch_size": self.batch_size}.items():
            if not isinstance(value, int) or value < 1:
                raise SubFitError(f"finetune: {name} is {value}; it must be a whole number of at least 1")
        if self.windows is not None and self.windows < 2:
            raise SubFitError(f"finetune: windows is {self.windows}; one is needed to train on, and one to judge by")
        interval = self.trainer["val_check_interval"]
        if isinstance(interval, int | float) and not interval > 0:
            raise SubFitError(f"finetune: val_check_interval is {interval}; it must be above 0")
        for name in ("limit_train_batches", "limit_val_batches"):
            if self.trainer.get(name) in (0, 0.0):
                raise SubFitError(f"finetune: {name} is 0; nothing would be trained, or known of it")
        clip = self.trainer["gradient_clip_val"]
        if isinstance(clip, int | float) and not clip >= 0:
            raise SubFitError(f"finetune: gradient_clip_val is {clip}; it must not be negative")
        if not self.weight_decay >= 0:
            raise SubFitError(f"finetune: weight_decay is {self.weight_decay}; it must not be negative")
        if self.patience is not None and self.patience < 1:
            raise SubFitError(f"finetune: patience is {self.patience}; it must be at least 1, or null")
        weights = [self.kl, self.stream, self.next_token, *self.losses.values()]
        if not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise SubFitError("finetune: kl, stream, next_token and losses are weights: none below 0, and one of them above")
        if not self.learning_rate > 0 or not 0 <= self.warmup <= 1:
            raise SubFitError("finetune: learning_rate must be above 0, and warmup from 0 to 1")
