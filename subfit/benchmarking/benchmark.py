"""What `subfit benchmark` runs."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from subfit import registry
from subfit.benchmarking.compression_cost import compression_costs
from subfit.benchmarking.engine_speed import compare_in_engine
from subfit.benchmarking.random_weights import random_models
from subfit.benchmarking.speed import compare_speed, setting
from subfit.benchmarking.workload import Workload, check_comparable, load_both
from subfit.bypass import Substitute
from subfit.config import DEFAULTS, Recipe, resolve
from subfit.errors import SubFitError
from subfit.model.folders import check_free, new_folder
from subfit.model.sizes import footprint
from subfit.options.checked import checked
from subfit.options.typed import check_known, typed, typed_arguments
from subfit.progress import Stage
from subfit.tracking.plots import draw_speed


@checked
def benchmark(
    model: str | None = None,
    *,
    reference: str | None = None,
    random_weights: str | None = None,
    sparsity: float = 0.25,
    attention_bypass: Substitute | str | Mapping[str, Any] = DEFAULTS["attention_bypass"],
    ffn_bypass: Substitute | str | Mapping[str, Any] = DEFAULTS["ffn_bypass"],
    workload: Workload | None = None,
    compile: bool = False,
    engine: Literal["transformers", "vllm", "llama.cpp"] = "transformers",
    engine_python: str | None = None,
    output: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Times a compressed model beside its dense one, see `benchmarking.speed.compare_speed`, and the compression itself.

    Args:
        model, reference: names of the compressed and of the dense model, as for `load`; the dense one is loaded in the data
            types of the compressed one.
        random_weights: instead of both, a configuration to build both from; see `random_weights.random_models`.
        sparsity, attention_bypass, ffn_bypass: what the compressed one has then, and how the dense one is compressed where
            that is timed; bypasses are given as for `compress`.
        workload: what is timed.
        compile: whether to run both models through `torch.compile`, or to let the engine compile them.
        engine: what runs the models; see `engine_speed.compare_in_engine` for those that are not transformers.
        engine_python: the Python of the environment that the engine is installed in; this one if not given.
        dtype, device, trust_remote_code: as for `load`.
        output: folder to write `benchmark.json` and `benchmark.png`, a picture of the speed, to; it must not exist. Nothing
            is written if not given.

    Returns:
        What `compare_speed` returns, with the models' sizes and where they ran; and the list `compression`, an entry as
        `compression_cost` returns it for each number of calibration windows.

    Raises:
        SubFitError: if an argument, the model or the data cannot be used; the message says why.
    """
    workload = workload or Workload()
    if output is not None:
        check_free(output)
    given = {"attention_bypass": attention_bypass, "ffn_bypass": ffn_bypass, "sparsity": sparsity}
    recipe = resolve(given).recipe
    options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    result: dict[str, Any] = {"model": model or random_weights, "reference": reference, "workload": asdict(workload)}
    if engine != "transformers":
        if random_weights or not model or not reference:
            raise SubFitError(f"with engine {engine}, give a compressed model and its dense reference")
        names = {"dense": reference, "compressed": model}
        result |= compare_in_engine(names, engine, engine_python, workload, compile, options)
    elif engine_python:
        raise SubFitError("engine_python is of another engine; give engine, too")
    else:
        dense, compressed = _models(model, reference, random_weights, recipe, workload.seed, options)
        check_comparable(dense, compressed, workload)
        result |= {
            "setting": {**setting(dense), "compiled": compile},
            "size": {"dense": footprint(dense), "compressed": footprint(compressed)},
            **compare_speed(dense, compressed, workload, compile),
            "compression": compression_costs(dense, recipe, workload),
        }
    if output is not None:
        _save(result, output)
    return result


def _models(
    model: str | None, reference: str | None, random_weights: str | None, recipe: Recipe, seed: int, options: dict[str, Any]
) -> tuple[Any, Any]:
    """The dense and the compressed model."""
    if random_weights and not (model or reference):
        bypasses = recipe.attention_bypass, recipe.ffn_bypass
        with Stage("building models with random weights"):
            return random_models(random_weights, recipe.sparsity, *bypasses, seed=seed, **options)
    if model and reference and not random_weights:
        models, _ = load_both({"dense": reference, "compressed": model}, options)
        return models["dense"], models["compressed"]
    raise SubFitError("give a compressed model and its dense reference, or random_weights alone")


def _save(result: dict[str, Any], output: str) -> None:
    """Writes a result, and a picture of its speed if that was measured, to a new folder."""
    with new_folder(output) as folder:
        (folder / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if result["prefill"] or result["decoding"]:
            draw_speed(result, folder / "benchmark.png")


def benchmark_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs `benchmark` with options given as plain data, those of the workload beside the others.

    Raises:
        SubFitError: if an option is unknown, or has a value that it cannot have; and as `benchmark`.
    """
    timed = [field.name for field in fields(Workload)]
    others = [name for name in inspect.signature(benchmark).parameters if name != "workload"]
    check_known(given, [*others, *timed])
    workload = typed(Workload, {name: value for name, value in given.items() if name in timed}, "", registry.made)
    rest = {name: value for name, value in given.items() if name not in timed}
    return benchmark(workload=workload, **typed_arguments(benchmark, rest, "", registry.made))
