"""Windows of random tokens that repeat themselves: only copying from the context predicts them, but for the first time."""

from typing import Any

import torch
from torch import Tensor


def repeated_windows(model: Any, tokenizer: Any, count: int, length: int, seed: int, times: int = 2) -> Tensor:
    """Returns windows of a random segment each, several times, (count, length), after the begin-of-text token, if any.

    The tokens are uniformly random, without the special ones: what comes next can be known from the context alone. Attention
    heads that copy from it (induction heads, arXiv 2209.11895) are measured by how well all but the first segment is
    predicted.
    """
    special = set(tokenizer.all_special_ids)
    known = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    ordinary = torch.tensor([token for token in range(known) if token not in special])
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    first = torch.tensor([start] * count, dtype=torch.long).view(count, len(start))
    return torch.cat([first, repeated_segments(ordinary, count, length - len(start), seed, times)], 1)


def repeated_segments(vocabulary: Tensor, count: int, length: int, seed: int, times: int = 2) -> Tensor:
    """Returns windows of random tokens of a vocabulary (tokens), a segment and its repetitions, (count, length).

    If the length is not divisible by `times`, the last one is cut.
    """
    generator = torch.Generator().manual_seed(seed)
    segment = vocabulary[torch.randint(len(vocabulary), (count, -(-length // times)), generator=generator)]
    return segment.repeat(1, times)[:, :length]
