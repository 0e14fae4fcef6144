"""Calibration and evaluation tokens: sampled from the model itself, from local text, or from a data set of the hub."""

from typing import Any

import torch
from torch import Tensor

from subfit.calibration.sampling import sample
from subfit.calibration.settings import Data
from subfit.calibration.text import draw_windows, first_windows, read_files, read_hub, text_windows
from subfit.model.digests import tensor_digest


def read_tokens(data: Data, model: Any, tokenizer: Any, seed: int, held_out: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the tokens that `data` describes, packed without padding, and others of the same sources for evaluation.

    Args:
        model: the model to sample from; used by the source `self` alone.
        tokenizer: the tokenizer of the model; its special tokens are not added to text.
        seed: seed of sampling from the model, and of the choice of windows where `data.sampling` is `random`.
        held_out: number of further windows, disjoint from the others.

    Returns:
        Two tensors, (data.windows, length) and (held_out, length).

    Raises:
        SubFitError: if a file or data set cannot be read, or holds too few tokens.
    """
    sources = data.sources()
    used, kept = [], []
    for index, source in enumerate(sources):
        count, extra = (n // len(sources) + (index < n % len(sources)) for n in (data.windows, held_out))
        if source == "self":
            part = sample(model, tokenizer, count + extra, data.length, seed)
        elif source == "text":
            windows, where = text_windows(read_files(data), tokenizer, data.length), " + ".join(data.path)
            if data.sampling == "random":
                part = draw_windows(windows, count + extra, data.length, where, seed)
            else:
                part = first_windows(windows, count + extra, data.length, where)
        else:
            windows = text_windows(read_hub(data, seed), tokenizer, data.length)
            part = first_windows(windows, count + extra, data.length, f"{data.dataset} ({data.split})")
        used.append(part[:count])
        kept.append(part[count:])
    return torch.cat(used), torch.cat(kept)


def describe_tokens(tokens: Tensor) -> dict[str, Any]:
    """Returns the shape and the SHA-256 of tokens, by which a record names them."""
    return {"shape": list(tokens.shape), "sha256": tensor_digest(tokens)}
