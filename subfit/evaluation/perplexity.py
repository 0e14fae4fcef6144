"""Perplexity of a model on a text, with its uncertainty."""

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor

from subfit.calibration.data import read_stretch, read_tokens
from subfit.calibration.settings import Data
from subfit.errors import SubFitError
from subfit.evaluation.divergence import Logits, exp, summary, window_sums
from subfit.evaluation.intervals import bootstrap_interval


def read_windows(data: Data, stride: int | None, model: Any, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the windows of a text, and from where on their tokens count.

    With a stride of s < length, window i begins at token i * s, and all but the first count for their last s tokens alone:
    each token is predicted once, with at least length - s tokens to its left where the text has them.

    Args:
        data: where the tokens come from; a stride needs one text or one data set.
        stride: tokens from the start of a window to the start of the next; the windows' length if not given: disjoint
            windows, of which the first token is not predicted.
        model, tokenizer, seed: as for `calibration.data.read_tokens`.

    Returns:
        Tokens (windows, length), and the position of the first token that counts in each, (windows).

    Raises:
        SubFitError: if the stride does not suit the windows, or there are too few tokens.
    """
    if stride is None or stride == data.length:
        tokens, *_ = read_tokens(data, model, tokenizer, seed)
        return tokens, torch.ones(len(tokens), dtype=torch.long)
    if not 1 <= stride < data.length:
        raise SubFitError(f"the stride is {stride}; it must be at least 1 and at most the windows' length, {data.length}")
    if data.sources() not in (["text"], ["hub"]):
        raise SubFitError("a stride needs one text: windows sampled from a model have nothing to their left")
    line = read_stretch(data, data.length + (data.windows - 1) * stride, model, tokenizer, seed)
    first = torch.full((data.windows,), max(1, data.length - stride))
    first[0] = 1
    return line.unfold(0, data.length, stride), first


def byte_counts(tokens: Tensor, first: Tensor, decode: Callable[[list[int]], str]) -> Tensor:
    """Returns the UTF-8 bytes that the counted tokens of each window add to the text before them, (windows), float64.

    A character whose bytes are parted between the tokens that count and those that do not counts as decoding shows it.

    Args:
        tokens: (windows, length).
        first: (windows), the position of the first token that counts.
        decode: a tokenizer's, from token ids to text.
    """
    pairs = zip(tokens.tolist(), first.tolist(), strict=True)
    sizes = [len(decode(row).encode()) - len(decode(row[:start]).encode()) for row, start in pairs]
    return torch.tensor(sizes, dtype=torch.float64)


def measure(
    logits: Logits,
    tokens: Tensor,
    first: Tensor,
    tokenizer: Any,
    reference: Logits | None = None,
    *,
    batch_size: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns `divergence.summary` of a text's windows, with bits per byte and 95 % bootstrap intervals over the windows.

    Args:
        logits, tokens, first, reference, batch_size: as for `divergence.window_sums`.
        tokenizer: decodes the tokens, to count their bytes.
        seed: seed of the resampling.
    """
    sums = window_sums(logits, tokens, reference, batch_size, first=first)
    size = byte_counts(tokens, first, lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False)).sum()
    bits = float(sums["nll"].sum() / log(2) / size)
    return {"windows": len(tokens), **summary(sums), **perplexity_intervals(sums, seed), "bits_per_byte": bits}


def perplexity_intervals(sums: dict[str, Tensor], seed: int = 0) -> dict[str, list[float] | None]:
    """Returns the 95 % bootstrap intervals over windows of what `divergence.summary` says, from the same sums; None each
    where there are too few windows.

    Args:
        seed: seed of the resampling. The ratio's interval resamples both models' losses on the same windows.
    """
    nats, counts = sums["nll"].cpu(), sums["tokens"].cpu()
    result = {"perplexity_interval": _exp(bootstrap_interval(nats, counts, seed))}
    if "reference_nll" in sums:
        surplus = nats - sums["reference_nll"].cpu()
        result["perplexity_ratio_interval"] = _exp(bootstrap_interval(surplus, counts, seed))
    return result


def _exp(interval: tuple[float, float] | None) -> list[float] | None:
    return [exp(end) for end in interval] if interval else None
