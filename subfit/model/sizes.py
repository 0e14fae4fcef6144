"""What a model occupies and reads: weights, key-value cache, and what its forward pass needs at most."""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from subfit.model.dtypes import saved_share

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr when it starts and stops


def weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of a model's parameters; those that several modules share count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def footprint(model: nn.Module) -> dict[str, int]:
    """Returns a model's `parameters`, their `weight_bytes`, and the `kv_bytes_per_token` of one sequence; in the type that
    its weights are saved in."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": int(weight_bytes(model) * saved_share(model)),
        "kv_bytes_per_token": sum(kv_bytes_per_token(model)),
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
    """Returns the bytes of the keys and values that a cache of transformers holds."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
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


@torch.no_grad()
def kv_bytes_per_token(model: Any) -> list[int]:
    """Returns the bytes that each layer of a model adds to the key-value cache for each token, read off a real cache.

    They are those in the type of the saved weights, where the model computes in a wider one.
    """
    length = 4
    tokens = torch.zeros((1, length), dtype=torch.long, device=next(model.parameters()).device)
    cache = model(tokens, use_cache=True).past_key_values
    held = [[t for t in (layer.keys, layer.values) if t is not None] for layer in cache.layers]
    share = saved_share(model)
    return [int(sum(t.numel() * t.element_size() for t in tensors) * share) // length for tensors in held]
