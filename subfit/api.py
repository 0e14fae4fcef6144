"""What the command line runs, as functions: compress, evaluate, load and list."""

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

from subfit import checkpoint, registry
from subfit.data import Data, windows
from subfit.errors import SubFitError
from subfit.models import load
from subfit.pipeline import Compression, Recipe, compress_model
from subfit.quality import evaluate_logits, kv_bytes_per_token, logits_of

__all__ = ["Options", "SubFitError", "compress", "evaluate", "list_strategies", "load"]

DEFAULTS = {"scorer": "subfit", "selector": "per_type", "attention_bypass": "low_rank", "ffn_bypass": "shared_low_rank"}
EVALUATION_SEED = 1 << 32  # added to the seed, so that sampled evaluation windows are never those of a calibration


@dataclass
class EvaluationData(Data):
    """Where the tokens to evaluate on come from; if no source is given, held out from those of the calibration."""

    windows: int = 16


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
    """

    model: str = "smollm2-135m"
    output: str | None = None
    calibration: Data = field(default_factory=Data)
    evaluation: EvaluationData = field(default_factory=EvaluationData)
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int = 8


def compress(**given: Any) -> Compression:
    """Compresses a model, and saves it if there is an output folder.

    Args:
        given: the attributes of `Options`. A strategy is given as an object, as a name, or as a mapping with `class_path`
            (a name) and `init_args`; `calibration` and `evaluation` as objects or as mappings.

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
    for name, data in (("calibration", Data), ("evaluation", EvaluationData)):
        if isinstance(made.get(name), dict):
            try:
                made[name] = data(**made[name])
            except TypeError as error:
                takes = ", ".join(f.name for f in fields(data))
                raise SubFitError(f"{name}: {error}; it takes {takes}") from error
    return Options(**made)


def run(options: Options, configuration: dict[str, Any]) -> Compression:
    """Does the run that `options` describes; `configuration` is the same as plain data, for the record."""
    start = time.perf_counter()
    if options.output is not None:
        checkpoint.check_free(options.output)
    torch.manual_seed(options.seed)
    model, tokenizer = load(options.model, dtype=options.dtype, device=options.device)
    if options.output is not None:
        checkpoint.check_space(options.output, model)
    loaded = time.perf_counter()
    tokens, held_out = _tokens(options, model, tokenizer)
    sampled = time.perf_counter()
    compression = compress_model(model, tokens, options, evaluation=held_out, batch_size=options.batch_size)
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
        checkpoint.save(compression, options.output)
    return compression


def evaluate(
    model: str,
    *,
    reference: str | None = None,
    data: Data | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 4,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Returns a model's perplexity, size and, with a reference, its agreement with it; see `quality.evaluate_logits`.

    Args:
        model, reference: names of models, as for `load`.
        data: the tokens to evaluate on; if not given, sampled from the reference, or else from the model itself.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    data = data or EvaluationData()
    data.sources()
    subject, tokenizer = load(model, **options)
    dense = load(reference, **options)[0] if reference is not None else None
    tokens, _ = windows(data, dense or subject, tokenizer, seed + EVALUATION_SEED)
    quality = evaluate_logits(logits_of(subject), tokens, logits_of(dense) if dense else None, batch_size)
    size = {
        "parameters": sum(p.numel() for p in subject.parameters()),
        "kv_bytes_per_token": sum(kv_bytes_per_token(subject)),
    }
    return {"model": model, "reference": reference, **quality, **size}


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


def _tokens(options: Options, model: Any, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The calibration and the evaluation windows of a run."""
    own, wanted = options.evaluation, options.evaluation.windows
    held_out = wanted > 0 and not (own.source or own.path or own.dataset)
    tokens, rest = windows(options.calibration, model, tokenizer, options.seed, wanted if held_out else 0)
    if wanted > 0 and not held_out:
        rest, _ = windows(own, model, tokenizer, options.seed + EVALUATION_SEED)
    return tokens, rest


def _fingerprint(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """An argument as plain data: its fields or, for a strategy given as an object, its class."""
    if isinstance(value, str | int | float | dict | list | None):
        return value
    return vars(value) if isinstance(value, Data) else f"{type(value).__module__}.{type(value).__qualname__}"
