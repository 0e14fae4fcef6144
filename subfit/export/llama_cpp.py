"""What `subfit export FOLDER OUT.gguf` runs: a model as a file that llama.cpp, Ollama and LM Studio read."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import ModelCard

from subfit.errors import SubFitError
from subfit.export.deci import Plan
from subfit.export.deci_graph import check_plan
from subfit.export.gguf_file import TYPE_OF, TYPES, write_gguf
from subfit.export.gguf_tokenizer import Vocabulary, vocabulary_of
from subfit.export.gguf_verification import verify_gguf
from subfit.export.llama_engine import QUANTISED, quantise, require
from subfit.export.llama_family import plan_of
from subfit.model.dtypes import saved_dtype
from subfit.model.loading import load_placed
from subfit.model.offloading import Places
from subfit.options.checked import checked
from subfit.progress import Stage
from subfit.tracking.atomic import whole_file

CACHE_BYTES = 2  # of a number in llama.cpp's cache, by default


@checked
def export_gguf(
    model: str, output: str, *, type: str = "auto", verify: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Writes a model, dense or compressed, as a GGUF file of llama.cpp's architecture `deci`.

    It is complete or not there. Before it is written, what llama.cpp will compute of it is compared with the model in
    float32, which takes four bytes of memory for each parameter.

    Args:
        model: folder of a compressed model, or a dense one, as for `load`.
        output: the file to write; it must not exist.
        type: data type of the matrices: `f32`, `f16`, `bf16`, `q8_0`; `auto` is the checkpoint's own; or `q4_k_m`, `q5_k_m`,
            `q6_k`, by the quantiser of llama.cpp, which must be installed.
        verify: whether to compare what llama.cpp, which must be installed, computes of the file with transformers.
        trust_remote_code: as for `load`.

    Returns:
        Plain data: `output`, `bytes`, `type`, `layers`, `replaced`, `context`, `kv_bytes_per_token` in llama.cpp, `notes`,
        and `verification`, as `verify_gguf` returns it; None if it was not asked for.

    Raises:
        SubFitError: if the file cannot be written, or llama.cpp cannot compute the model; nothing is written then.
    """
    path = Path(output)
    _check(path, type, verify)
    opened, tokenizer = load_placed(model, "auto", Places(torch.device("cpu"), dequantised=True), trust_remote_code)
    kind = TYPE_OF[saved_dtype(opened)] if type == "auto" else type
    plan, vocabulary = prepare(opened.float(), tokenizer)  # the same weights: a check in fewer bits would see little
    about = _about(model, opened)
    try:
        with whole_file(path) as partial:
            with Stage(f"writing {output}"):
                _write(partial, plan, vocabulary, about, kind)
            verification = _verified(partial, output, opened, tokenizer, kind, plan) if verify else None
    except OSError as error:
        raise SubFitError(f"cannot write {output}: {error}; nothing was left there") from error
    return {
        "output": output,
        "bytes": path.stat().st_size,
        "type": kind,
        "layers": len(plan.layers),
        "replaced": _replaced(opened),
        "context": plan.context,
        "kv_bytes_per_token": sum(2 * CACHE_BYTES * layer.kv_heads * plan.head_size for layer in plan.layers),
        "notes": _notes(plan, vocabulary, opened),
        "verification": verification,
    }


def prepare(model: Any, tokenizer: Any) -> tuple[Plan, Vocabulary]:
    """Returns what a file holds of a model, which computes in float32, and of its tokenizer.

    Raises:
        SubFitError: if llama.cpp cannot compute the model, or has no such tokenizer.
    """
    stops = getattr(model.generation_config, "eos_token_id", None) or []
    plan = plan_of(model)
    vocabulary = vocabulary_of(tokenizer, len(plan.embedding), stops if isinstance(stops, list) else [stops])
    check_plan(plan, model)
    return plan, vocabulary


def _check(path: Path, kind: str, verify: bool) -> None:
    """Raises SubFitError if a file cannot be written as asked; before the model is loaded."""
    known = ("auto", *TYPES, *QUANTISED)
    if kind not in known:
        raise SubFitError(f"unknown type {kind!r} of a GGUF file; use one of {', '.join(known)}")
    if path.suffix != ".gguf":
        raise SubFitError(f"the output {path} must end in .gguf")
    if path.exists() or path.is_symlink():
        raise SubFitError(f"the output {path} exists; give a new name, or remove it")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise SubFitError(f"the output {path} cannot be written: its folder is not there, or not writable")
    if kind in QUANTISED:
        require(f"the type {kind}")
    if verify:
        require("verify")


def _write(path: Path, plan: Plan, vocabulary: Vocabulary, about: dict[str, Any], kind: str) -> None:
    if kind in TYPES:
        write_gguf(path, plan, vocabulary, about, kind)
        return
    with TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        plain = Path(folder) / "plain.gguf"
        write_gguf(plain, plan, vocabulary, about, TYPE_OF[plan.embedding.dtype])
        quantise(plain, path, kind)


def _verified(path: Path, output: str, model: Any, tokenizer: Any, kind: str, plan: Plan) -> dict[str, Any]:
    with Stage(f"comparing {output} with the model"):
        return verify_gguf(path, model, tokenizer, kind, plan.head_size)


def _replaced(model: Any) -> list[str]:
    return [f"{site['kind']}.{site['layer']}" for site in getattr(model.config, "subfit", {"sites": []})["sites"]]


def _about(name: str, model: Any) -> dict[str, Any]:
    """What the file says of the model."""
    record, replaced = Path(name) / "compression.json", _replaced(model)
    base = json.loads(record.read_text()).get("configuration", {}).get("model") if record.is_file() else None
    about: dict[str, Any] = {"general.name": Path(name).absolute().name if Path(name).exists() else name}
    card = Path(name) / "README.md"
    license = ModelCard.load(card).data.license if card.is_file() else None
    if isinstance(license, str):
        about["general.license"] = license
    if not replaced:
        return about
    said = f"{base or 'A model'}, compressed with SubFit: {len(replaced)} submodules replaced by fitted bypasses"
    about |= {"general.description": said, "general.tags": ["subfit", "compressed"]}
    about |= {"subfit.version": version("subfit"), "subfit.replaced": replaced}
    return about | ({"general.base_model.count": 1, "general.base_model.0.name": base} if base else {})


def _notes(plan: Plan, vocabulary: Vocabulary, model: Any) -> list[str]:
    """Where the file is not all that the model is."""
    most = model.config.max_position_embeddings
    limited = f"the file is for contexts of up to {plan.context} tokens: beyond, the model attends or rotates otherwise"
    return [*([limited] if plan.context < most else []), *vocabulary.notes]
