"""Measures the speed-up of a compressed model in another engine, beside the ideal one by its FLOPs or its bytes."""

import gc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subfit.benchmarking.speed import decoding_counts, ideal_decoding, prefill_flops, setting, transposed
from subfit.benchmarking.timing import interleave, medians, speed_up
from subfit.benchmarking.workload import Workload, check_comparable, load_both
from subfit.errors import SubFitError
from subfit.export.engine import Demand, ServedModel, open_model
from subfit.model.sizes import footprint

Entry = dict[str, Any]
Models = Mapping[str, Any]


def compare_in_engine(
    names: Mapping[str, str], engine: str, python: str | None, workload: Workload, compiled: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Times the prefill and the decoding of two models side by side in an engine.

    What they compute and read is counted in transformers before, as `speed.compare_speed` does.

    Args:
        names: of the `dense` and the `compressed` model, as for `load`.
        engine, python: see `export.engine`.
        workload: what is timed.
        compiled: whether the engine may compile them.
        options: of `load`; the dense model gets the data types of the compressed one.

    Returns:
        As `compare_speed` without what only transformers has, with `setting`, `size` and `engine`: its name, version and
        `cache` of both models. An entry of `decoding` also has `requests_at_once`, the batch of the dense model and as many
        sequences of the compressed one as the key-value cache of this batch holds; and `requests_per_second` with these,
        prefill included.

    Raises:
        SubFitError: if a model cannot be loaded, or the engine is not installed, cannot serve it or has too small a cache.
    """
    if workload.calibration_windows:
        raise SubFitError("a compression is timed in transformers only; leave out calibration_windows or engine")
    with tempfile.TemporaryDirectory(prefix="subfit-") as temporary:
        with _loaded(names, options) as (models, tokenizers):
            check_comparable(models["dense"], models["compressed"], workload)
            about = {"setting": {**setting(models["dense"]), "compiled": compiled}}
            about["size"] = {key: footprint(model) for key, model in models.items()}
            counted = _counted(models, workload)
            folders = {key: _folder(names[key], models[key], tokenizers[key], Path(temporary) / key) for key in names}
        sequences = max((len(tokens) for tokens, _ in counted["decoding"]), default=1)
        demand = Demand(about["setting"]["dtype"], workload.positions(), sequences, compiled, python)
        with ExitStack() as stack:
            served = {key: stack.enter_context(open_model(engine, folder, demand)) for key, folder in folders.items()}
            cache = {key: asdict(model.cache) for key, model in served.items()}
            about["engine"] = {"name": engine, "version": served["dense"].version, "cache": cache}
            _check_room(about["engine"], counted["decoding"])
            prefill = [_prefill(served, tokens, entry, workload) for tokens, entry in counted["prefill"]]
            decoding = [_decoding(served, tokens, entry, workload) for tokens, entry in counted["decoding"]]
    return {**about, "prefill": prefill, "decoding": decoding, "compression": []}


@contextmanager
def _loaded(names: Mapping[str, str], options: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Two models and their tokenizers, in memory until the context ends."""
    models, tokenizers = load_both(names, options)
    yield models, tokenizers
    models.clear()
    gc.collect()


@torch.inference_mode()
def _counted(models: Models, workload: Workload) -> dict[str, list[tuple[Tensor, Entry]]]:
    """The tokens of each measurement, and what is counted in it."""
    generator = torch.Generator().manual_seed(workload.seed)
    embedding = models["dense"].get_input_embeddings().weight

    def tokens(*shape: int) -> Tensor:
        return torch.randint(len(embedding), shape, generator=generator)

    prefill, decoding = list[tuple[Tensor, Entry]](), list[tuple[Tensor, Entry]]()
    for length in workload.prompt_lengths:
        prompt = tokens(1, length)
        flops = {key: prefill_flops(model, prompt.to(embedding.device)) for key, model in models.items()}
        prefill.append((prompt, {"prompt_length": length, "flops_per_token": flops}))
    for context in workload.contexts:
        for batch in workload.batch_sizes:
            prompts = tokens(batch, context)
            there = prompts.to(embedding.device)
            counts = {key: decoding_counts(model, there, there[:, :1]) for key, model in models.items()}
            about: Entry = {"context": context, "batch_size": batch, "new_tokens": workload.new_tokens, **transposed(counts)}
            held = {key: round(count) for key, count in about["kv_bytes"].items()}
            at_once = batch * held["dense"] // held["compressed"] if held["compressed"] else batch
            about["requests_at_once"] = {"dense": batch, "compressed": at_once}
            prompts = torch.cat((prompts, tokens(at_once - batch, context)))
            decoding.append((prompts, {**about, "ideal": ideal_decoding(counts)}))
    return {"prefill": prefill, "decoding": decoding}


def _check_room(engine: Entry, decoding: list[tuple[Tensor, Entry]]) -> None:
    """Raises SubFitError if a batch is larger than a model's cache: some of its sequences would wait for others."""
    for _, entry in decoding:
        length = entry["context"] + entry["new_tokens"] + 1
        for key, number in entry["requests_at_once"].items():
            most = engine["cache"][key]["tokens"]
            if most is not None and number * length > most:
                raise SubFitError(
                    f"{number} sequences of {length} tokens are more than the cache of the {key} model in {engine['name']} "
                    f"holds, {most} tokens; give smaller batch_sizes or contexts, or the engine more memory"
                )


def _folder(name: str, model: Any, tokenizer: Any, new: Path) -> Path:
    """The folder of a model; of one that has none, a new folder that it is written to."""
    if (Path(name) / "config.json").is_file():
        return Path(name).absolute()
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    return new


def _prefill(served: Mapping[str, ServedModel], tokens: Tensor, entry: Entry, workload: Workload) -> Entry:
    prompts = tokens.tolist()
    runs = {key: partial(_first_token, model, prompts) for key, model in served.items()}
    seconds = interleave(runs, workload.repeats, workload.warmup, f"timing prefill of {entry['prompt_length']} tokens")
    flops = entry["flops_per_token"]
    return {**entry, "seconds": medians(seconds), "speedup": speed_up(seconds, flops["dense"] / flops["compressed"])}


def _first_token(model: ServedModel, prompts: list[list[int]]) -> float:
    return model.generate(prompts, 0)[0]


def _decoding(served: Mapping[str, ServedModel], tokens: Tensor, entry: Entry, workload: Workload) -> Entry:
    prompts, batch, steps = tokens.tolist(), entry["batch_size"], workload.new_tokens
    batches = {"dense": batch, "compressed": batch}
    if len(prompts) > batch:
        batches["filled"] = len(prompts)  # the compressed model, with as much cache as the dense one needs
    whole: dict[str, list[float]] = {name: [] for name in batches}

    def run(name: str) -> float:
        first, rest = served["dense" if name == "dense" else "compressed"].generate(prompts[: batches[name]], steps)
        whole[name].append(first + rest)
        return rest

    label = f"timing decoding of {batch} x {entry['context']} tokens"
    found = interleave({name: partial(run, name) for name in batches}, workload.repeats, workload.warmup, label)
    requests = medians({name: all_[workload.warmup :] for name, all_ in whole.items()})
    fullest = {"dense": "dense", "compressed": "filled" if "filled" in batches else "compressed"}
    seconds = {key: value for key, value in medians(found).items() if key in served}
    return {
        **{key: value for key, value in entry.items() if key != "ideal"},
        "seconds": seconds,
        "tokens_per_second": {key: batch * steps / value for key, value in seconds.items()},
        "requests_per_second": {key: batches[name] / requests[name] for key, name in fullest.items()},
        "speedup": speed_up(found, entry["ideal"]),
    }
