"""Checks that a written checkpoint is the model that it was written from, by what was written alone."""

import sys
import uuid
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subfit.errors import SubFitError
from subfit.model.offloading import read_offloaded, state_parts
from subfit.model.processes import full_tensor
from subfit.model.quantised import configuration_of, quantisation_of, read_dequantised
from subfit.options.importing import import_file

TOKENS = 8


@torch.no_grad()
def sample_logits(model: Any) -> Tensor:
    """Returns the logits of a model on a few fixed tokens, (tokens, vocabulary), on the CPU.

    Of processes that share the model's weights, all must call this.
    """
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(TOKENS).remainder(vocabulary)[None].to(next(model.parameters()).device)
    return full_tensor(model(tokens, use_cache=False).logits)[0].cpu()


def verify(
    folder: Path,
    weights: Iterable[Mapping[str, Tensor]],
    logits: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    offloaded: bool = False,
) -> None:
    """Loads a checkpoint by its own `modeling_subfit.py` alone, and compares it with the model that was saved.

    The file is imported under a name of its own, as transformers does with remote code; it cannot import `subfit`, see
    `portable_source`. The weights stay mapped from the disk as far as safetensors can.

    Args:
        weights: the state dict that was saved, in the parts of `state_parts`; every tensor must be equal, of those that
            are saved quantised what they stand for.
        logits: what `sample_logits` gave of the saved model; must be equal up to rounding: within the square root of the
            precision of their data type, relative to their norm.
        device: where the saved model is. What is loaded stays on the CPU, unless the logits differ there: another device may
            round an expert's choice the other way.
        dtype: in which the saved model computes, and what is loaded, too.
        offloaded: whether the weights of the decoder layers of what is loaded stay on the disk, and it runs on the device.

    Raises:
        SubFitError: if the checkpoint cannot be loaded, or is another model.
    """
    name = f"modeling_subfit_{uuid.uuid4().hex}"
    try:
        module = import_file(folder / "modeling_subfit.py", name)
        config = module.SubFitConfig.from_pretrained(folder)
        load = module.SubFitForCausalLM.from_pretrained
        if offloaded:
            with torch.device("meta"):
                like = module.SubFitForCausalLM._from_config(config)
            load = partial(read_offloaded, load, like, device)
        if section := quantisation_of(configuration_of(str(folder))):
            load = partial(read_dequantised, load, section)
        found = load(folder, config=config, dtype="auto").eval()
        wrong = list(chain.from_iterable(map(_different, state_parts(found), weights)))  # one part at a time is held
        if found.dtype != dtype:
            found = found.to(dtype)
        distance = _distance(sample_logits(found), logits)
        if not _is_rounding(distance, logits) and device.type != "cpu" and not offloaded:
            distance = _distance(sample_logits(found.to(device)), logits)
    except Exception as error:
        raise SubFitError(f"the checkpoint does not load again: {type(error).__name__}: {error}") from error
    finally:
        sys.modules.pop(name, None)
    if wrong:
        raise SubFitError(f"the checkpoint does not load as the same model: its weight {min(wrong)} differs")
    if not _is_rounding(distance, logits):
        raise SubFitError(
            f"the checkpoint does not load as the same model: its logits differ by {distance:.1e} of their norm"
        )


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _is_rounding(distance: float, logits: Tensor) -> bool:
    return distance <= torch.finfo(logits.dtype).eps ** 0.5


def _different(loaded: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that one of two models has alone, or that differ."""
    alone = [key for key in {*saved, *loaded} if key not in saved or key not in loaded]
    return alone + [key for key in loaded if key in saved and not _equal(loaded[key], saved[key])]


def _equal(loaded: Tensor, saved: Tensor) -> bool:
    return loaded.dtype == saved.dtype and torch.equal(loaded.cpu(), saved.cpu())
