"""The state that a fine-tuning leaves to be resumed from, and whether it is that of the same run."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.finetuning.closed_form import identity_of_options
from subfit.finetuning.master_weights import MasterWeights
from subfit.model.digests import tensor_bytes, tensor_digest
from subfit.model.processes import full_tensor
from subfit.model.replacing import Replacement, Switch, switched_off
from subfit.tracking.provenance import processor

PROCESSOR = "processor"  # beside it


class OtherRun(SubFitError):
    """A state is none of this run."""


class LastState(ModelCheckpoint):
    """Saves the state to `last.ckpt` at each evaluation of the held-out windows.

    Args:
        folder: where to.
        identity: says which model, selection and tokens this is; kept in the file.
    """

    def __init__(self, folder: str, identity: dict[str, Any]):
        super().__init__(folder, "last", save_on_train_epoch_end=False, enable_version_counter=False)
        self._identity = identity

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["subfit"] = {**self._identity, PROCESSOR: processor()}


def run_identity(
    calibration: Calibration,
    switches: list[Switch],
    weights: MasterWeights,
    configuration: Mapping[str, Any],
    training: Tensor,
) -> dict[str, Any]:
    """Returns what a run and the one that it resumes must have in common.

    Args:
        configuration: the options of the run as plain data, as far as they are known.
        training: (windows, length), the tokens to train on.
    """
    digest = hashlib.sha256()
    with switched_off(switches):
        for parameter in calibration.model.parameters():
            digest.update(tensor_bytes(full_tensor(parameter.detach()).flatten()[:1024].float()))
    return {
        **identity_of_options(configuration),
        "model": digest.hexdigest(),
        "selection": [switch.site.name for switch in switches if isinstance(switch, Replacement)],
        "bypasses": [list(weight.shape) for weight in weights],
        **identity_of_tokens(calibration.tokens, training),
    }


def identity_of_tokens(calibration: Tensor, training: Tensor) -> dict[str, Any]:
    """Returns the part of `run_identity` that the tokens are, (windows, length) each."""
    return {"calibration tokens": tensor_digest(calibration), "training tokens": tensor_digest(training)}


def check_state(path: str, identity: dict[str, Any]) -> str | None:
    """Checks that a file is the state of a run with this identity, or with this part of one.

    Returns:
        The processor that it was saved on, if it is known.

    Raises:
        OtherRun: if it is not.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["subfit"]
        saved_on: str | None = found.get(PROCESSOR)
        differs = [what for what, own in identity.items() if found.get(what) != own]
    except Exception as error:  # whatever torch says of what is no such file
        raise OtherRun(f"resume: {path} is no state of a fine-tuning ({type(error).__name__})") from error
    if differs:
        raise OtherRun(f"resume: {path} is of another run: its {differs[0]} differs")
    return saved_on
