"""What `subfit compress`, `evaluate` and `list` run, as functions; `benchmark` is in `subfit.benchmarking`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from subfit.calibration.checks import warn_of_other_tokens, warn_of_shared_windows
from subfit.calibration.data import RunTokens, describe_tokens, read_tokens
from subfit.calibration.settings import Data, EvaluationData, evaluation_seed
from subfit.config import Options, Source, configuration, resolve
from subfit.errors import SubFitError, shown
from subfit.evaluation.evaluate import evaluate
from subfit.export.llama_check import check_for_llama_cpp
from subfit.finetuning.settings import FineTuning
from subfit.model.checkpoint import check_space
from subfit.model.dtypes import describe_dtypes, rounding_of
from subfit.model.loading import device_of, load, load_placed, load_to_cpu
from subfit.model.offloading import Places
from subfit.model.processes import init_process_group, shard_model
from subfit.model.quantised import forget_names
from subfit.pipeline import Compression, check_finetuning, check_resume, check_resumed_tokens, compress_model
from subfit.progress import Stage
from subfit.registry.listing import list_strategies
from subfit.saving import Saved
from subfit.tracking.loggers import Log, open_log
from subfit.tracking.provenance import provenance

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from subfit.bypass import Substitute
    from subfit.fitting.costs import Unit
    from subfit.fitting.sequential import Target
    from subfit.model.memory import DeviceMap
    from subfit.scorer import Scorer
    from subfit.selector import Selector

__all__ = ["Options", "SubFitError", "compress", "evaluate", "list_strategies", "load"]

Plain = Mapping[str, Any]


def compress(
    model: str | Path | PreTrainedModel | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: Source | Sequence[Source] = (),
    scorer: Scorer | str | Plain | None = None,
    selector: Selector | str | Plain | None = None,
    attention_bypass: Substitute | str | Plain | None = None,
    ffn_bypass: Substitute | str | Plain | None = None,
    sparsity: float | None = None,
    budget: Unit | None = None,
    protect: Sequence[str] | None = None,
    fitting: Literal["one_shot", "sequential"] | None = None,
    target: Target | None = None,
    correction: float | None = None,
    refit_kept: float | None = None,
    finetune: FineTuning | Plain | None = None,
    output: str | Path | None = None,
    calibration: Data | Plain | None = None,
    evaluation: EvaluationData | Plain | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: str | None = None,
    batch_size: int | None = None,
    fsdp: bool | None = None,
    logger: Any = None,
    engine: Literal["transformers", "llama.cpp"] | None = None,
    log_checkpoint: bool | None = None,
    resume: str | Path | None = None,
    allow_code: bool = False,
) -> Compression:
    """Compresses a model, and saves it if there is an output folder.

    What is None is as `config` says or, if that says nothing, at the default that `config.Recipe` and `config.Options` give
    it. A strategy is an object, a name, or a mapping with `class_path` (a name) and `init_args`; the other groups of options
    are objects or mappings. The `configuration` in the record makes the same run again: `compress(**configuration)`. Other
    objects of Python, such as a callback, are not in it; it is refused until they are given again.

    Args:
        model: hub name, local folder, `.gguf` file, or `smollm2-135m`, the embedded default; or a loaded model, which is
            compressed in place, in its own data type and where it is. The record has the name that it was loaded by, not
            what was changed in it since.
        tokenizer: the tokenizer of a loaded model.
        config: a preset's name, a YAML or JSON file, a `compression.json` or its folder, or a mapping of options; of
            several, the later wins, and the arguments of this function win over all.
        scorer: gives every submodule a number, lower is safer to replace (`subfit`).
        selector: chooses the submodules to replace (`per_type`).
        attention_bypass: takes the place of each chosen Attention (`low_rank`).
        ffn_bypass: takes the place of each chosen FeedForward (`shared_low_rank`); one object for both types is one group.
        sparsity: share to replace, from 0 to below 1 (0.25).
        budget: what the sparsity is a share of (`submodules`).
        protect: submodules never to replace, such as `ffn.11`, `layer.0` or `ffn` (none).
        fitting: `one_shot` (the default) or `sequential`.
        target: what a sequential fit aims at: `branch`, `dense` or `corrected` (the default).
        correction: share of the streams' difference that `corrected` makes up for (1.0).
        refit_kept: ridge with which a sequential fit refits the output projections of the kept submodules (not).
        finetune: how what was fitted is trained together afterwards (not).
        output: new folder to write the compressed model to (none).
        calibration: tokens to score and fit on (64 windows of 512, sampled from the model).
        evaluation: tokens to compare with the dense model on (16 windows, held out from those of the calibration).
        seed: seed of everything that is random (0).
        dtype: data type of weights and computations; `auto` (the default) is the checkpoint's own, but computes in
            float32 where the device would emulate it, and saves the weights in the checkpoint's.
        device: torch device; `auto` (the default) is CUDA where there is one.
        device_map: where the weights are: on the `device` (the default), on the `disk`, or as they fit (`auto`).
        max_memory: most memory that they may take with `auto`, such as `8GB` (half of what is free).
        batch_size: windows run at once (8).
        fsdp: whether the processes that torchrun started shard the weights of the decoder layers (no).
        logger: where the run is logged, one logger or a list: names, mappings with `class_path`, or objects (`none`).
        engine: what the compressed model is to run in; what `llama.cpp` cannot hold is refused before the work
            (`transformers`).
        log_checkpoint: whether the logger gets the saved model, too (no).
        resume: the `last.ckpt` of an interrupted run, to go on from with its fine-tuning (none).
        allow_code: whether files of Python that a file in `config` names, such as a scorer's, may run (no).

    Returns:
        The compressed model, its tokenizer, and the record that is also saved as `compression.json`.

    Raises:
        SubFitError: if an argument, the model or the data cannot be used; the message says why.
    """
    given = {name: value for name, value in locals().items() if name not in ("model", "tokenizer", "config", "allow_code")}
    given = {name: value for name, value in given.items() if value is not None}
    sources = [config] if isinstance(config, str | Path | Mapping) else config
    if not isinstance(sources, list | tuple):
        raise SubFitError(f"config is {shown(config)}; it must be a preset's name, a file, a mapping, or a list of these")
    if model is None or isinstance(model, str | Path):
        if tokenizer is not None:
            raise SubFitError("a tokenizer is given for a loaded model only; one that is named comes with its own")
        return run(resolve(*sources, given if model is None else {**given, "model": model}, allow_code=allow_code))
    if not callable(tokenizer):
        raise SubFitError("the model is loaded; give its tokenizer, too: tokenizer=...")
    return run(_on_loaded(resolve(*sources, given, allow_code=allow_code), model), (model, tokenizer))


def run(options: Options, loaded: tuple[Any, Any] | None = None) -> Compression:
    """Does the run that `options` describe.

    Args:
        options: see `config.resolve`.
        loaded: the model and its tokenizer, if they are loaded already.

    Raises:
        SubFitError: if the options, the model or the data cannot be used.
    """
    written = configuration(options)
    check_finetuning(options.recipe, device_of(options.device))
    check_resume(options.resume, options.recipe, written)
    saved = Saved(options.output, options.resume, written)
    options.check_files()
    with (
        saved.said_of_errors(),
        open_log(options.logger, written, saved.run_folder, options.resume, artifact=options.log_checkpoint) as log,
    ):
        compression = _run(options, written, loaded, log, saved)
        log.result(compression.record, options.output)
    return compression


def _run(options: Options, written: dict[str, Any], loaded: tuple[Any, Any] | None, log: Log, saved: Saved) -> Compression:
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    model, tokenizer = loaded or model_of(options)
    if options.output is not None:
        check_space(options.output, model)
    if options.engine == "llama.cpp":
        recipe = options.recipe
        check_for_llama_cpp(model, tokenizer, {"attention": recipe.attention_bypass, "ffn": recipe.ffn_bypass})
    loaded_at = time.perf_counter()
    tokens = tokens_of(options, model, tokenizer)
    described = describe_data(options, tokens)  # now, as files may be gone after the fit
    check_resumed_tokens(options.resume, tokens)
    warn_of_shared_windows(tokens.evaluation, tokens.seen(), "evaluation")
    for path in options.configurations:
        warn_of_other_tokens(path, written, described["calibration_tokens"]["sha256"])
    stages = {"load": loaded_at - start, "data": time.perf_counter() - loaded_at}

    def save(record: dict[str, Any], closed_form: bool = True) -> None:
        record["seconds"] = {name: round(value, 3) for name, value in stages.items()} | record["seconds"]
        record.update(**provenance(), dtypes=describe_dtypes(model), configuration=written, **described)
        saved.save(model, tokenizer, record, closed_form)

    given: dict[str, Any] = {"evaluation": tokens.evaluation, "training": tokens.training, "seed": options.seed}
    given["batch_size"] = options.batch_size
    compression = compress_model(model, tokens.calibration, options.recipe, log=log, keep=save, **given)
    compression.tokenizer = tokenizer
    save(compression.record, closed_form=False)
    return compression


def model_of(options: Options) -> tuple[Any, Any]:
    """Returns the dense model of a run, and its tokenizer.

    Raises:
        SubFitError: if the model has no name, or cannot be loaded.
    """
    if options.model is None:
        raise SubFitError("model is null: the configuration is that of a loaded model without a name; give the model")
    places = Places(device_of(options.device), options.device_map, options.max_memory, dequantised=True)
    if not options.fsdp:
        return load_placed(options.model, options.dtype, places)
    if options.device_map != "device":
        raise SubFitError("fsdp has the weights on the devices of all processes; leave out device_map")
    init_process_group(places.device)
    model, tokenizer = load_to_cpu(options.model, options.dtype, places)
    shard_model(model, places.device)
    return model, tokenizer


def tokens_of(options: Options, model: Any, tokenizer: Any) -> RunTokens:
    """Returns the tokens of a run.

    Raises:
        SubFitError: if a source cannot be read, or holds too few tokens.
    """
    own, wanted, training = options.evaluation, options.evaluation.windows, options.recipe.training_windows
    held_out = wanted if own.is_held_out() else 0
    with _reading("calibration", options.calibration):
        tokens, rest, others = read_tokens(options.calibration, model, tokenizer, options.seed, held_out, training)
    if wanted > held_out:
        with _reading("evaluation", own):
            rest, *_ = read_tokens(own, model, tokenizer, evaluation_seed(options.seed))
    return RunTokens(tokens, rest, others if training else None)


def _reading(purpose: str, data: Data) -> Stage:
    return Stage(f"{'sampling' if 'self' in data.sources() else 'reading'} {purpose} text")


def describe_data(options: Options, tokens: RunTokens) -> dict[str, Any]:
    """Returns what the record of a run says of its tokens; see `describe_tokens`."""
    source = options.calibration if options.evaluation.is_held_out() else options.evaluation
    evaluation = tokens.evaluation
    described = {f"{purpose}_tokens": describe_tokens(its, options.calibration) for purpose, its in tokens.seen().items()}
    return described | {"evaluation_tokens": describe_tokens(evaluation, source if len(evaluation) else None, tokens.seen())}


def _on_loaded(options: Options, model: PreTrainedModel) -> Options:
    """The options of a run on a loaded model: its name, if it has one, its data type and its device.

    Raises:
        SubFitError: if it is no model of transformers, or another data type, another device, or several processes are asked
            for.
    """
    if not hasattr(model, "config"):
        raise SubFitError(f"the model is a {type(model).__name__}; it must be a name, or a model of transformers")
    dtype = " computed in ".join(dict.fromkeys(describe_dtypes(model).values()))
    if options.dtype not in ("auto", dtype):
        raise SubFitError(f"dtype is {options.dtype}, but the loaded model is {dtype}")
    if options.device not in ("auto", str(model.device), model.device.type):
        raise SubFitError(f"device is {options.device}, but the loaded model is on {model.device}")
    if options.fsdp:
        raise SubFitError("fsdp divides a model as it is loaded; give the model's name")
    model.train(False)
    forget_names(model)
    name = getattr(model.config, "_name_or_path", "") or None
    chosen = dtype if rounding_of(model) is None else "auto"
    found = dataclasses.replace(options, model=name, dtype=chosen, device=str(model.device))
    found.configurations = options.configurations
    return found
