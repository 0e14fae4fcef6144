"""Measures the speed-up of a compressed model, beside the ideal one by its FLOPs or its bytes."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from subfit.benchmarking.timing import interleave, medians, seconds_of, speed_up
from subfit.benchmarking.workload import Workload
from subfit.errors import SubFitError, is_lack_of_memory
from subfit.fitting.costs import count_flops
from subfit.model.dtypes import name_of
from subfit.model.sizes import cache_bytes, peak_bytes, step_bytes


class Runner:
    """A model as generation runs it, with a cache that grows; compiled, with one of a fixed size for decoding.

    Args:
        model: a causal language model of transformers.
        compiled: whether to run it through `torch.compile`.
    """

    def __init__(self, model: Any, compiled: bool = False):
        self.model = model
        self.compiled = compiled
        self._forward = torch.compile(model.forward) if compiled else model
        last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": True, **({"logits_to_keep": 1} if last_only else {})}

    def prefill(self, tokens: Tensor) -> None:
        """Reads prompts (batch, tokens) into a new cache, as far as the logits of their next tokens."""
        self._forward(tokens, **self._options)

    def fill(self, tokens: Tensor, room: int) -> Any:
        """Returns a cache that holds a context (batch, tokens); one of a fixed size has room for so many more."""
        config, length = self.model.config, tokens.shape[1] + room
        cache = StaticCache(config=config, max_cache_len=length) if self.compiled else DynamicCache(config=config)
        self.model(tokens, past_key_values=cache, **self._options)
        return cache

    def decode(self, tokens: Tensor, cache: Any) -> None:
        """Reads tokens (batch, steps) one by one after what `cache` holds."""
        for step in tokens.split(1, dim=1):
            self._forward(step, past_key_values=cache, **self._options)


@torch.inference_mode()
def compare_speed(dense: Any, compressed: Any, workload: Workload, compiled: bool = False) -> dict[str, Any]:
    """Times the prefill and the decoding of two models side by side.

    Args:
        dense, compressed: causal language models of transformers, of one vocabulary, on one device.
        workload: what is timed.
        compiled: whether to run them through `torch.compile`.

    Returns:
        Plain data: lists `prefill`, by `prompt_length`, and `decoding`, by `context` and `batch_size`. Each entry has for
        both models `seconds` (medians; of one prompt, or of all `new_tokens`), `flops_per_token`, `peak_bytes` (of decoding
        with the prefill of its context) and, if compiled, `graph_breaks`; of decoding also `tokens_per_second`, `kv_bytes`
        of the whole context, and `bytes_per_token`, the weights and the cache read. `speedup` is as `timing.speed_up` says,
        with the ratio of the FLOPs as the ideal for the prefill, and of the bytes read for decoding.

    Raises:
        SubFitError: if there is not enough memory.
    """
    runners = {"dense": Runner(dense, compiled), "compressed": Runner(compressed, compiled)}
    generator = torch.Generator().manual_seed(workload.seed)
    embedding = dense.get_input_embeddings().weight

    def tokens(*shape: int) -> Tensor:
        return torch.randint(len(embedding), shape, generator=generator).to(embedding.device)

    result: dict[str, Any] = {"prefill": [], "decoding": []}
    for length in workload.prompt_lengths:
        with _naming_lack_of_memory(f"a prompt of {length} tokens"):
            result["prefill"].append(_prefill(runners, tokens(1, length), workload))
    for context in workload.contexts:
        for batch in workload.batch_sizes:
            with _naming_lack_of_memory(f"{batch} x {context} tokens of context"):
                result["decoding"].append(_decoding(runners, tokens(batch, context + workload.new_tokens), workload))
    return result


def setting(model: Any) -> dict[str, Any]:
    """Returns what the time depends on besides the model: device, threads, data type and versions."""
    return {
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        "threads": torch.get_num_threads(),
        "dtype": name_of(model.dtype),
        "versions": {package: version(package) for package in ("subfit", "torch", "transformers")},
    }


def prefill_flops(model: Any, tokens: Tensor) -> float:
    """Returns the FLOPs for each token of reading prompts (batch, tokens), with the logits of the next token alone."""
    return count_flops(partial(Runner(model).prefill, tokens))["Global"] / tokens.numel()


def decoding_counts(model: Any, context: Tensor, token: Tensor) -> dict[str, float]:
    """Returns what a model computes and reads for each token (batch, 1) that it decodes after a context (batch, tokens).

    Returns:
        `flops_per_token`; `bytes_per_token`, of the weights and of the cache; and the `kv_bytes` of the whole context.
    """
    runner, batch = Runner(model), len(context)
    cache = runner.fill(context, 1)
    held = cache_bytes(cache)
    return {
        "flops_per_token": count_flops(partial(runner.decode, token, cache))["Global"] / batch,
        "bytes_per_token": (step_bytes(model, batch) + held) / batch,
        "kv_bytes": held,
    }


def transposed(counts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns counts by what is counted and then by model, given by model and then by what is counted."""
    return {key: {name: count[key] for name, count in counts.items()} for key in next(iter(counts.values()))}


def ideal_decoding(counts: Mapping[str, Mapping[str, float]]) -> float:
    """Returns the ratio of the bytes that decoding a token reads, dense to compressed."""
    return counts["dense"]["bytes_per_token"] / counts["compressed"]["bytes_per_token"]


def _prefill(runners: Mapping[str, Runner], tokens: Tensor, workload: Workload) -> dict[str, Any]:
    length = tokens.shape[1]
    flops = {name: prefill_flops(runner.model, tokens) for name, runner in runners.items()}
    runs = {name: partial(seconds_of, partial(runner.prefill, tokens), tokens.device) for name, runner in runners.items()}
    found, ratio = (
        _measure(runners, runs, workload, f"timing prefill of {length} tokens"),
        flops["dense"] / flops["compressed"],
    )
    return {
        "prompt_length": length,
        **found,
        "seconds": medians(found["seconds"]),
        "flops_per_token": flops,
        "speedup": speed_up(found["seconds"], ratio),
    }


def _decoding(runners: Mapping[str, Runner], tokens: Tensor, workload: Workload) -> dict[str, Any]:
    batch, steps = len(tokens), workload.new_tokens
    context, new = tokens[:, :-steps], tokens[:, -steps:]
    counts = {name: decoding_counts(runner.model, context, new[:, :1]) for name, runner in runners.items()}

    def generate(runner: Runner) -> float:
        cache = runner.fill(context, steps)
        return seconds_of(partial(runner.decode, new, cache), tokens.device)

    runs = {name: partial(generate, runner) for name, runner in runners.items()}
    found = _measure(runners, runs, workload, f"timing decoding of {batch} x {context.shape[1]} tokens")
    seconds = medians(found["seconds"])
    return {
        "context": context.shape[1],
        "batch_size": batch,
        "new_tokens": steps,
        **found,
        "seconds": seconds,
        "tokens_per_second": {name: batch * steps / value for name, value in seconds.items()},
        **transposed(counts),
        "speedup": speed_up(found["seconds"], ideal_decoding(counts)),
    }


def _measure(
    runners: Mapping[str, Runner], runs: Mapping[str, Callable[[], float]], workload: Workload, label: str
) -> dict[str, Any]:
    """The seconds of each run, in turns, its peak memory and, where it is compiled, its graph breaks."""
    found: dict[str, Any] = {}
    if runners["dense"].compiled:
        torch.compiler.reset()
        found["graph_breaks"] = {name: _graph_breaks(run) for name, run in runs.items()}
    found["seconds"] = interleave(runs, workload.repeats, workload.warmup, label)
    found["peak_bytes"] = {name: peak_bytes(runner.model, runs[name]) for name, runner in runners.items()}
    return found


def _graph_breaks(run: Callable[[], Any]) -> int:
    """The number of places where `run`, compiled by this call, leaves its graph."""
    counted = torch._dynamo.utils.counters["graph_break"]
    counted.clear()
    run()
    return sum(counted.values())


@contextmanager
def _naming_lack_of_memory(what: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise SubFitError(f"there is not enough memory for {what}; give smaller ones, or another --dtype") from error
