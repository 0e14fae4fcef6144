"""The optimiser of a fine-tuning and the schedule of its learning rate, as its settings say."""

import inspect
from functools import partial
from math import cos, pi
from pydoc import locate
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from subfit.finetuning.settings import FineTuning
from subfit.options.signatures import instantiate, parse_value

ADAMW = "torch.optim.AdamW"


def optimizer_callable(settings: FineTuning) -> OptimizerCallable:
    """Returns the function from parameters to the optimiser.

    Raises:
        SubFitError: if there is no such class, or it does not take these arguments.
    """
    place = "finetune.optimizer"
    given: Any = parse_value(OptimizerCallable, settings.optimizer or ADAMW, place)
    own = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if isinstance(given, type):
        return partial(given, **_taken(own, given))
    if isinstance(given, Namespace):  # a class by its path
        init_args = _taken(own, locate(given.class_path)) | dict(given.get("init_args") or {})  # it was imported before
        given = {"class_path": given.class_path, "init_args": init_args}
    found: OptimizerCallable = instantiate(OptimizerCallable, given, place)
    return found


def lr_scheduler_callable(settings: FineTuning, steps: int) -> LRSchedulerCallable:
    """Returns the function from an optimiser to the schedule of its learning rate in so many steps.

    Raises:
        SubFitError: if there is no such class, or it does not take these arguments.
    """
    if settings.lr_scheduler is None:
        return partial(LambdaLR, lr_lambda=partial(warmup_cosine, steps=steps, warmup=settings.warmup))
    found: LRSchedulerCallable = instantiate(LRSchedulerCallable, settings.lr_scheduler, "finetune.lr_scheduler")
    return found


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Returns the learning rate at a step, as a share of the highest: it rises linearly, then falls to 0 along a cosine.

    Args:
        steps: number of all steps.
        warmup: share of the steps in which it rises.
    """
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + cos(pi * (step - rising) / max(steps - rising, 1))) / 2


def optimizers(settings: FineTuning, parameters: Any, trainer: Trainer) -> dict[str, Any]:
    """Returns what `LightningModule.configure_optimizers` does."""
    optimizer = optimizer_callable(settings)(parameters)
    scheduler = lr_scheduler_callable(settings, trainer.max_steps)(optimizer)
    schedule: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
    if isinstance(scheduler, ReduceLROnPlateau):  # a step after each evaluation, of which a plain Trainer may have none yet
        every = trainer.val_check_interval
        schedule |= {"monitor": getattr(scheduler, "monitor", "validation/kl"), "strict": False}
        schedule["frequency"] = every if isinstance(every, int) else 1
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def _taken(given: dict[str, float], optimizer: Any) -> dict[str, float]:
    """The arguments that a class of optimisers takes."""
    takes = inspect.signature(optimizer).parameters
    return {name: value for name, value in given.items() if name in takes}
