"""What a model occupies and reads: weights, key-value cache, and what its forward pass needs at most."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers.cache_utils import Cache, CacheLayerMixin

from subfit.model.dtypes import saved_share

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr when it starts and stops
LENGTHS = (2, 4)  # of the sequences that a cache is read off; below any sliding window


def weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of a model's parameters; those that several modules share count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def footprint(model: nn.Module) -> dict[str, int]:
    """Returns a model's `parameters`, their `weight_bytes`, and its `cache_size`; in the type of its saved weights."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": int(weight_bytes(model) * saved_share(model)),
        **cache_size(model),
    }


def step_bytes(model: nn.Module, batch_size: int) -> int:
    """Returns the bytes of weights that decoding one token of each sequence of a batch reads.

    Of an embedding that is no other module's weight as well, one row for each sequence; of all else everything, the experts
    of a mixture included.
    """
    everything, rows = {}, {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                rows[p] = batch_size * p.shape[1] * p.element_size()
            else:
                everything[p] = p.numel() * p.element_size()
    return sum((rows | everything).values())


def cache_bytes(cache: Any) -> int:
    """Returns the bytes of keys, values and states that a cache of transformers holds."""
    return sum(slot_bytes(slot) for slot in cache.layers)


def slot_bytes(slot: Any) -> int:
    """Returns the bytes of keys, values and states that one slot of a cache holds."""
    values = [v for value in vars(slot).values() for v in (value.values() if isinstance(value, dict) else [value])]
    tensors = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return sum(t.numel() * t.element_size() for t in tensors)


def peak_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Returns the most memory that a model and what `run` does with it take together: weights, cache and intermediates.

    On a GPU and on a CPU alike, this is what torch's allocator hands out: on a GPU by its own statistics, on a CPU by the
    profiler's record of every allocation. The resident size of the process would depend on what it did before. What is
    allocated past torch, such as by some libraries of kernels, is not in it.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return weight_bytes(model) + torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # else what an earlier run has left is freed during this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return weight_bytes(model) + most


@dataclass(frozen=True)
class SlotSize:
    """What one slot of a cache holds of one sequence, in bytes of the type of the saved weights.

    Attributes:
        per_token: what each token adds, such as keys and values.
        per_sequence: the rest, such as states of convolutions, state-space models and linear attention.
    """

    per_token: int
    per_sequence: int


def slot_sizes(model: Any) -> list[SlotSize]:
    """Returns what each slot of a model's cache holds, read off real caches of two lengths; nothing if it has no cache."""
    (short, few), (long, many) = ((length, _held(model, length)) for length in LENGTHS)
    share = saved_share(model)
    sizes = []
    for a, b in zip(few, many, strict=True):
        per_token = (b - a) // (long - short)
        sizes.append(SlotSize(int(per_token * share), int((a - short * per_token) * share)))
    return sizes


def kv_bytes_per_token(model: Any) -> list[int]:
    """Returns the bytes that each slot of a model's cache grows by with each token; see `SlotSize`."""
    return [size.per_token for size in slot_sizes(model)]


def cache_size(model: Any) -> dict[str, int]:
    """Returns `kv_bytes_per_token` and `state_bytes_per_sequence` of all slots of a model's cache together."""
    sizes = slot_sizes(model)
    return {
        "kv_bytes_per_token": sum(size.per_token for size in sizes),
        "state_bytes_per_sequence": sum(size.per_sequence for size in sizes),
    }


def counts_tokens(model: Any) -> bool:
    """Whether a slot of a model's cache can tell how many tokens it has seen."""
    short, _ = LENGTHS
    slots = _cache(model, short)
    return any(slot.get_seq_length() == short for slot in slots if isinstance(slot, CacheLayerMixin))


def _held(model: Any, length: int) -> list[int]:
    """The bytes that each slot of the cache holds after some tokens."""
    return [slot_bytes(slot) for slot in _cache(model, length)]


@torch.no_grad()
def _cache(model: Any, length: int) -> list[Any]:
    """The slots of the cache that a model makes of some tokens."""
    tokens = torch.zeros((1, length), dtype=torch.long, device=next(model.parameters()).device)
    output = model(tokens, use_cache=True)
    return next((value.layers for value in output.values() if isinstance(value, Cache)), [])
