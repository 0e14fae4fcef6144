"""What the command line runs, as functions: compress, evaluate, benchmark, load and list."""

import hashlib
import inspect
import platform
import re
import time
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from subfit import registry
from subfit.calibration.data import EVALUATION_SEED, Data, EvaluationData, read_tokens
from subfit.errors import SubFitError
from subfit.evaluation.evaluate import evaluate
from subfit.finetuning.settings import FineTuning, LoRA
from subfit.model import checkpoint
from subfit.model.loading import device_of, load
from subfit.model.processes import init_process_group, shard_model
from subfit.pipeline import Compression, Recipe, compress_model
from subfit.tracking.loggers import Log, open_log
from subfit.tracking.plots import draw_scores

__all__ = ["Options", "SubFitError", "compress", "evaluate", "list_strategies", "load"]

DEFAULTS = {"scorer": "subfit", "selector": "per_type", "attention_bypass": "low_rank", "ffn_bypass": "shared_low_rank"}


@dataclass(kw_only=True)
class Options(Recipe):
    """A whole compression run.

    Attributes:
        model: hub name, local folder, `.gguf` file, or `smollm2-135m`, which is embedded and needs no hub.
        output: folder to write the compressed model to; it must not exist. Nothing is written if not given.
        calibration: tokens to score and fit on.
        evaluation: tokens to compare the compressed model with the dense one on; no windows, no evaluation.
        seed: seed of everything that is random.
        dtype: data type of the model's weights; `auto` is the checkpoint's own, and float32 for a `.gguf` file.
        device: torch device; `auto` is CUDA where there is one.
        batch_size: windows run at once.
        fsdp: whether the processes that torchrun has started divide the weights of the decoder layers among them, for models
            that do not fit on one device.
        logger: where the run is logged, one or a list: `none`; `csv` or `tensorboard`, files in the folder `<output>.run`;
            `wandb` or `mlflow`, whose own settings hold; or a Logger of Lightning's, by `class_path` and `init_args`.
        log_checkpoint: whether Weights & Biases gets the saved model, too.
        resume: a `last.ckpt` in the folder `<output>.run` of an interrupted run, to go on from with its fine-tuning.
    """

    model: str = "smollm2-135m"
    output: str | None = None
    calibration: Data = field(default_factory=Data)
    evaluation: EvaluationData = field(default_factory=EvaluationData)
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int = 8
    fsdp: bool = False
    logger: list[Any] | dict[str, Any] | str | None = "none"
    log_checkpoint: bool = False
    resume: str | None = None

    def check_files(self) -> None:
        """Raises SubFitError if a text file of the calibration or the evaluation is missing."""
        for data in (self.calibration, self.evaluation):
            data.check_files()


def compress(**given: Any) -> Compression:
    """Compresses a model, and saves it if there is an output folder.

    Args:
        given: the attributes of `Options`. A strategy is given as an object, as a name, or as a mapping with `class_path`
            (a name) and `init_args`; `calibration`, `evaluation` and `finetune` as objects or as mappings.

    Returns:
        The compressed model, its tokenizer, and the record that is also saved as `compression.json`.

    Raises:
        SubFitError: if something is wrong that the user can mend.
    """
    return run(options_from(given), {key: _plain(value) for key, value in (DEFAULTS | given).items()})


def options_from(given: dict[str, Any]) -> Options:
    """Builds the options of a run from plain data, with the default strategies where none are given.

    Raises:
        SubFitError: if an option or a strategy is unknown, or does not take these arguments.
    """
    known = {f.name for f in fields(Options)}
    for name in given:
        if name not in known:
            raise SubFitError(f"unknown option {name!r}; options are {', '.join(sorted(known))}")
    made = {**DEFAULTS, **given}
    for name, kind in registry.OPTIONS.items():
        made[name] = registry.make(kind, made[name])
    groups: dict[str, type] = {"calibration": Data, "evaluation": EvaluationData, "finetune": FineTuning}
    for name, group in groups.items():
        if isinstance(made.get(name), dict):
            made[name] = _group(name, group, made[name])
    return Options(**made)


def _group(name: str, group: Any, given: dict[str, Any]) -> Any:
    """An object of a class of options from plain data."""
    if isinstance(given.get("lora"), dict):
        given = {**given, "lora": _group(f"{name}.lora", LoRA, given["lora"])}
    try:
        return group(**given)
    except TypeError as error:
        takes = ", ".join(f.name for f in fields(group))
        raise SubFitError(f"{name}: {error}; it takes {takes}") from error


def run(options: Options, configuration: dict[str, Any]) -> Compression:
    """Does the run that `options` describes; `configuration` is the same as plain data, for the record."""
    if options.output is not None:
        checkpoint.check_free(options.output)
    options.check_files()
    folder = options.output and f"{options.output}.run"
    artifact = options.log_checkpoint
    with open_log(options.logger, configuration, folder, options.resume, artifact=artifact) as log:
        compression = _run(options, configuration, log)
        log.result(compression.record, options.output)
    return compression


def _run(options: Options, configuration: dict[str, Any], log: Log) -> Compression:
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    model, tokenizer = model_of(options)
    if options.output is not None:
        checkpoint.check_space(options.output, model)
    loaded = time.perf_counter()
    tokens, held_out = tokens_of(options, model, tokenizer)
    sampled = time.perf_counter()
    compression = compress_model(model, tokens, options, evaluation=held_out, batch_size=options.batch_size, log=log)
    compression.tokenizer = tokenizer
    stages = {"load": loaded - start, "data": sampled - loaded}
    record = compression.record
    record["seconds"] = {name: round(value, 3) for name, value in stages.items()} | record["seconds"]
    record.update(
        configuration=configuration,
        calibration_tokens={"shape": list(tokens.shape), "sha256": _fingerprint(tokens)},
        evaluation_tokens={"shape": list(held_out.shape), "sha256": _fingerprint(held_out)},
        versions={"python": platform.python_version(), **{p: version(p) for p in ("subfit", "torch", "transformers")}},
    )
    if options.output is not None:
        checkpoint.save(compression.model, tokenizer, record, options.output, draw_scores)
    return compression


def list_strategies(kind: str | None = None, name: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Returns what is known of every strategy, by kind: name, one-line description, papers, parameters, documentation.

    Args:
        kind: "scorers", "selectors" or "bypasses"; all three if not given.
        name: the name of one strategy of this kind.
    """
    if kind is not None and kind not in registry.INTERFACES:
        raise SubFitError(f"unknown kind of strategy {kind!r}; use {', '.join(registry.INTERFACES)}")
    if kind is not None and name is not None:
        return {kind: [_describe(kind, name)]}
    return {k: [_describe(k, n) for n in registry.names(k)] for k in registry.INTERFACES if kind in (None, k)}


def _describe(kind: str, name: str) -> dict[str, Any]:
    found = registry.find(kind, name)
    own = "__init__" in vars(found)
    parameters = list(inspect.signature(found).parameters.values()) if own else []
    documentation = inspect.getdoc(found) or ""
    return {
        "name": name,
        "description": documentation.partition("\n\n")[0].replace("\n", " "),
        "papers": list(dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", documentation))),
        "parameters": [str(p).replace("typing.", "") for p in parameters],
        "documentation": documentation,
    }


def model_of(options: Options) -> tuple[Any, Any]:
    """The dense model of a run, and its tokenizer."""
    if not options.fsdp:
        return load(options.model, dtype=options.dtype, device=options.device)
    device = device_of(options.device)
    init_process_group(device)
    model, tokenizer = load(options.model, dtype=options.dtype, device="cpu")
    shard_model(model, device)
    return model, tokenizer


def tokens_of(options: Options, model: Any, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The calibration and the evaluation windows of a run."""
    own, wanted = options.evaluation, options.evaluation.windows
    held_out = wanted > 0 and not (own.source or own.path or own.dataset)
    tokens, rest = read_tokens(options.calibration, model, tokenizer, options.seed, wanted if held_out else 0)
    if wanted > 0 and not held_out:
        rest, _ = read_tokens(own, model, tokenizer, options.seed + EVALUATION_SEED)
    return tokens, rest


def _fingerprint(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """An argument as plain data: its fields or, for an object of another kind, such as a strategy, its class."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, dict):
        return {key: _plain(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inside) for inside in value]
    if isinstance(value, Data | FineTuning | LoRA):
        return _plain(vars(value))
    found = value if hasattr(value, "__qualname__") else type(value)
    return f"{found.__module__}.{found.__qualname__}"
