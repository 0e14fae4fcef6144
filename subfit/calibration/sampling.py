"""Calibration tokens that the model samples itself, where there is no data."""

from typing import Any

import torch
from torch import Tensor

from subfit.errors import SubFitError
from subfit.progress import Stage

SAMPLING_BATCH = 64


@torch.no_grad()
def sample(model: Any, tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """Samples windows from the model's own distribution, each from the begin-of-text token; (count, length).

    Data-free calibration (as LLM-QAT, arXiv 2305.17888): the samples follow the model's own distribution.
    """
    first = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), None)
    if first is None:
        raise SubFitError("the tokenizer has no begin-of-text token to sample from; give a text or a data set instead")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.full((count, length), first)
    with Stage(f"sampling {count} windows of text", count * (length - 1), "tokens") as progress:
        for start in range(0, count, SAMPLING_BATCH):
            rows = tokens[start : start + SAMPLING_BATCH]
            cache = None
            for position in range(1, length):
                step = rows[:, position - 1 : position].to(device)
                output = model(step, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                probabilities = output.logits[:, -1].float().softmax(-1)
                if not probabilities.isfinite().all():
                    raise SubFitError("the model gives NaN or infinite logits; it cannot be sampled from")
                rows[:, position] = torch.multinomial(probabilities, 1, generator=generator)[:, 0].cpu()
                progress.advance(len(rows))
    return tokens
