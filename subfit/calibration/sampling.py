"""Calibration tokens that the model samples itself, where there is no data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from subfit.errors import SubFitError
from subfit.progress import Stage

LARGEST_BATCH = 128  # windows that are sampled at once; a product with more rows is hardly faster for each of them


@torch.no_grad()
def sample(model: Any, tokenizer: Any, count: int, length: int, seed: int, prompts: Sequence[str] = ()) -> Tensor:
    """Samples windows from the model's own distribution, each from the beginning of a text; (count, length).

    Data-free calibration (as LLM-QAT, arXiv 2305.17888): the samples follow the model's own distribution. Each token of each
    window is drawn by a random number of its own, so that a window does not depend on how many others there are, but for
    rounding.

    Args:
        prompts: what the windows begin with, in turn, with the special tokens that the tokenizer puts in front
            of a text; the begin-of-text token alone, if there are none.

    Raises:
        SubFitError: if there is nothing to begin with, or the model gives NaN.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, length - 1, dtype=torch.float64, generator=generator).to(device)
    tokens = torch.zeros(count, length, dtype=torch.long, device=device)
    given = torch.zeros(count, dtype=torch.long, device=device)  # tokens of each window that are not drawn
    beginnings = [_beginning(tokenizer, prompt)[:length] for prompt in prompts or [""]]
    for turn, ids in enumerate(beginnings):
        tokens[turn :: len(beginnings), : len(ids)] = torch.tensor(ids, device=device)
        given[turn :: len(beginnings)] = len(ids)
    batches = -(-count // LARGEST_BATCH)  # of equal size
    with Stage(f"sampling {count} windows of text", count * (length - 1), "tokens") as progress, _GroupedQueries():
        split = (part.tensor_split(batches) for part in (tokens, draws, given))
        for rows, numbers, fixed in zip(*split, strict=True):
            cache = _cache(model, length)
            for position in range(1, length):
                output = model(rows[:, position - 1 : position], past_key_values=cache, use_cache=True)
                drawn = draw(output.logits[:, -1], numbers[:, position - 1])
                rows[:, position] = torch.where(position < fixed, rows[:, position], drawn)
                progress.advance(len(rows))
    return tokens.cpu()


def _beginning(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens that a text of the model begins with."""
    ids: list[int] = tokenizer(prompt)["input_ids"] if prompt else []
    ids = ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids  # which some put behind a text
    ids = ids or [t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None][:1]
    if not ids:
        raise SubFitError("the tokenizer has no begin-of-text token to sample from; give a prompt, a text or a data set")
    return ids


def draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """Returns a token for each row of logits (rows, vocabulary), drawn by a uniform number in [0, 1) each, (rows).

    It is the first one whose cumulative probability exceeds the number. The hub's way, an exponential number for every token
    of the vocabulary, takes as long as a forward pass of a small model.
    """
    cumulative = logits.float().softmax(-1).cumsum(-1, dtype=torch.float64)
    if not cumulative[:, -1].isfinite().all():
        raise SubFitError("the model gives NaN or infinite logits; it cannot be sampled from")
    found = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)[:, 0]
    return found.clamp_max(logits.shape[-1] - 1)  # where the product was rounded up to the whole


class _GroupedQueries(TorchFunctionMode):
    """Within the context, the query heads that share keys and values read them together, where there is one token each.

    It is the same as one after the other, and on a CPU some five times as fast: without a mask, the heads of a group are
    like as many tokens.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not scaled_dot_product_attention or not kwargs.get("enable_gqa"):
            return func(*args, **kwargs)
        query, key, *_ = args
        if query.shape[-2] > 1 or kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            return func(*args, **kwargs)
        del kwargs["enable_gqa"]
        windows, heads, _, width = query.shape
        grouped = query.view(windows, key.shape[1], heads // key.shape[1], width)
        return func(grouped, *args[1:], **kwargs).view(windows, heads, 1, -1)


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves it without types
    """Keys and values of a layer with room for all tokens: they are not copied for each one, as those of a plain cache.

    Args:
        room: number of tokens.
    """

    def __init__(self, room: int):
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._room = room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._held = [x.new_empty((*x.shape[:2], self._room, x.shape[-1])) for x in (key_states, value_states)]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = start + key_states.shape[-2]
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, start:end] = new
        self.keys, self.values = (held[:, :, :end] for held in self._held)
        return self.keys, self.values


def _cache(model: Any, length: int) -> DynamicCache:
    """A cache for `length` tokens; its layers that keep only a sliding window of them are those of transformers."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_Layer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
