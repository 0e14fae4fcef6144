"""Lightning's Trainer for a fine-tuning, from the arguments that are given for it."""

import inspect
import os

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch import nn

from subfit.errors import SubFitError, did_you_mean
from subfit.finetuning.data_module import check_shared_equally
from subfit.finetuning.isolation import quiet
from subfit.finetuning.lora import check_layers
from subfit.finetuning.losses import find_loss
from subfit.finetuning.optimization import lr_scheduler_callable, optimizer_callable
from subfit.finetuning.settings import OWNED, FineTuning
from subfit.options.signatures import instantiate, parse_value


def check_settings(settings: FineTuning, device: torch.device, model: nn.Module | None = None) -> None:
    """Checks what names classes, functions and arguments of Lightning's or torch's.

    Args:
        device: where the model will be.
        model: the model to fine-tune, if it is known already.

    Raises:
        SubFitError: if an argument of the Trainer is unknown or has a wrong type, or Lightning makes no Trainer of them, its
            processes cannot share a batch equally, its nodes were not started, an optimiser or a schedule does not take
            its arguments, a loss cannot be found, or the model has fewer layers than are to have adapters.
    """
    known = inspect.signature(Trainer).parameters
    for name, value in settings.trainer.items():
        if name not in known:
            hint = did_you_mean(name, known.keys() - OWNED.keys()).rstrip()
            raise SubFitError(f"finetune.trainer: Lightning's Trainer has no argument {name!r}{hint and f'; {hint}'}")
        parse_value(known[name].annotation, value, f"finetune.trainer.{name}")
    optimizer_callable(settings)
    lr_scheduler_callable(settings, settings.trainer["max_steps"])
    for loss in settings.losses:
        find_loss(loss)
    if model is not None and settings.lora is not None:
        check_layers(model, settings.lora)
    _check_trainer(settings, device)


def _check_trainer(settings: FineTuning, device: torch.device) -> None:
    """Makes a Trainer, as Lightning says only then what of its arguments does not go together, or is not there."""
    if not isinstance(settings.trainer["strategy"], str):
        return  # an object is of one Trainer
    deterministic = torch.are_deterministic_algorithms_enabled()  # which a Trainer may change for the process
    try:
        with quiet():
            trainer = make_trainer(settings, device, [], [])
        check_shared_equally(settings.batch_size, trainer.num_devices * trainer.num_nodes)
        if trainer.num_nodes > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():  # it would wait for them
            raise SubFitError(
                f"finetune.trainer.num_nodes is {trainer.num_nodes}; no launcher, such as torchrun, has started them"
            )
    except SubFitError:
        raise
    except Exception as error:  # whatever Lightning, or a class that is named, says
        raise SubFitError(f"finetune.trainer: {' '.join(str(error).split())}") from error
    finally:
        torch.use_deterministic_algorithms(deterministic)


def make_trainer(settings: FineTuning, device: torch.device, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """Returns the Trainer of a fine-tuning.

    Args:
        device: where the model is.
        callbacks: those that SubFit needs; the settings' own come after them.
        loggers: where curves go.

    Raises:
        SubFitError: if the settings have an argument that it does not take.
    """
    known = inspect.signature(Trainer).parameters
    given = settings.trainer
    made = {name: instantiate(known[name].annotation, given[name], f"finetune.trainer.{name}") for name in given}
    own = made.pop("callbacks", None) or []
    callbacks = [*callbacks, *(own if isinstance(own, list) else [own])]
    if isinstance(made["val_check_interval"], int):  # Lightning counts batches, and allows none that comes too late
        batches = made["accumulate_grad_batches"]
        made["val_check_interval"] = min(made["val_check_interval"], made["max_steps"]) * batches
    if made["devices"] == 1 and device.index is not None:
        made["devices"] = [device.index]
    return Trainer(
        **made,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        callbacks=callbacks,
        logger=loggers or False,
        check_val_every_n_epoch=None,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,
    )
