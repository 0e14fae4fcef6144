"""Loads models by name: from the hub, a local folder, a `.gguf` file, a compressed checkpoint, or the embedded default."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from subfit.errors import SubFitError, summary
from subfit.model.digests import check_digests
from subfit.model.dtypes import compute_natively, dtype_of
from subfit.model.embedded import EMBEDDED, embedded_file
from subfit.model.gguf_cache import load_gguf
from subfit.model.hub_access import check_reachable
from subfit.model.memory import DeviceMap
from subfit.model.modeling_subfit import NOT_DENSE, SubFitConfig, SubFitForCausalLM
from subfit.model.offloading import Loader, Places, is_offloaded
from subfit.model.recording import probe_tokens
from subfit.model.section import check_section
from subfit.model.threads import limit_threads
from subfit.options.checked import checked
from subfit.options.reading import read_json
from subfit.progress import Stage


@checked
def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap = "device",
    max_memory: str | None = None,
    trust_remote_code: bool = False,
    verify: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model, dense or compressed, and its tokenizer.

    Args:
        name: hub name, local folder, `.gguf` file, folder of a compressed model, or `smollm2-135m` or `gemma3-270m`, which
            come as packages; if there is a folder of this name, it is that folder.
        dtype: name of a torch dtype, in which the model computes and is saved; `auto` is that of the checkpoint (of a
            quantised `.gguf` file, bfloat16), but computes in float32 where the device would emulate it; see `model.dtypes`.
        device: name of a torch device; `auto` is CUDA where there is one.
        device_map: where the weights are: `device`, all on the device; `disk`, those of the decoder layers on the disk, from
            where they are read while their layer runs; `auto`, the former if they take at most `max_memory`.
        max_memory: most memory that the weights may take with `auto`, such as `8GB`; half of what is free if not given.
        trust_remote_code: whether code in the checkpoint may run; needed where a compressed model's bypass is made of a
            module that came with a plug-in.
        verify: whether to compare the files of a compressed model with their SHA-256 in its `compression.json` before.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        SubFitError: if there is no such model, it cannot be read, its weights are not those of its configuration, or they
            were changed since they were written, where that is verified.
    """
    return load_placed(name, dtype, Places(device_of(device), device_map, max_memory), trust_remote_code, verify)


def load_placed(
    name: str, dtype: str, places: Places, trust_remote_code: bool = False, verify: bool = False
) -> tuple[Any, Any]:
    """Loads a model and its tokenizer, as `load` does, to where `places` says."""
    if verify:
        check_digests(name)
    model, tokenizer = load_to_cpu(name, dtype, places, trust_remote_code)
    with _errors_of(name):
        return model if is_offloaded(model) else model.to(places.device), tokenizer


def load_to_cpu(name: str, dtype: str, places: Places, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Loads a model for a device, as `load` does, but leaves it in main memory, or its decoder layers on the disk."""
    wanted = dtype_of(dtype)
    gguf = _gguf_file(name)
    limit_threads()
    with Stage(f"loading {name}"), _errors_of(name):
        if gguf is None:
            model, tokenizer = _read(name, wanted, trust_remote_code, places)
        else:
            model, tokenizer = load_gguf(gguf, wanted, lambda folder: _read(str(folder), "auto", False, places))
            model.config._name_or_path = name
        if wanted == "auto":
            compute_natively(model, places.device)
    return model.eval(), tokenizer


def _read(name: str, dtype: Any, trust_remote_code: bool, places: Places) -> tuple[Any, Any]:
    _check_name(name)
    if not is_compressed(name):
        model = places.read(_automatic(name, trust_remote_code), name, dtype=dtype, trust_remote_code=trust_remote_code)
        return model, AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    check_section(read_json(Path(name) / "config.json"), trust_remote_code)
    if trust_remote_code:
        model = places.read(_automatic(name, True), name, dtype=dtype, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    else:
        config = SubFitConfig.from_pretrained(name)
        own = Loader(SubFitForCausalLM.from_pretrained, lambda: SubFitForCausalLM._from_config(config))
        model = places.read(own, name, config=config, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(name, config=config)  # else it warns of the type
    with torch.no_grad():
        model.eval()(probe_tokens(model), use_cache=False)  # what is written of it may not be what its layers take
    return model, tokenizer


def _automatic(name: str, trust_remote_code: bool) -> Loader:
    """What makes the model of this name as its configuration says."""

    def without_weights() -> Any:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)

    return Loader(AutoModelForCausalLM.from_pretrained, without_weights)


def _check_name(name: str) -> None:
    """Raises SubFitError if a name is neither a folder with a model nor could be one on the hub."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SubFitError("the folder has no config.json")
        return
    if path.exists():
        raise SubFitError("it is a file; a model is a folder, a .gguf file or a name on the hub")
    check_reachable(name)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Within the context, what goes wrong is said to concern this model, whatever the files in it make of transformers."""
    try:
        yield
    except Exception as error:
        reason = summary(error)
        if isinstance(error, OSError) and not Path(name).exists():
            reason = f"there is no such folder, and of the hub: {reason}"
        elif not isinstance(error, SubFitError | OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"
        raise SubFitError(f"cannot load the model {name!r}: {reason}") from error


def device_of(name: str) -> torch.device:
    """Returns the torch device of this name; `auto` is CUDA where there is one.

    Raises:
        SubFitError: if there is no such device.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()  # which the device `meta` does not compute
        except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:  # AssertionError: not built for it
            raise SubFitError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # each process on a machine has its own


def is_compressed(name: str) -> bool:
    """Whether `name` is the folder of a model that SubFit compressed."""
    config = Path(name) / "config.json"
    found = read_json(config) if config.is_file() else {}
    return "subfit" in found or found.get("transformers_weights") == NOT_DENSE


def files_of_model(name: str) -> list[Path]:
    """Returns the files that a model is read from, as far as they are on this machine: configuration and weights.

    Raises:
        SubFitError: if it cannot be the name of a model.
    """
    gguf = _gguf_file(name)
    if gguf is not None:
        return [gguf]
    folder = Path(name)
    if not folder.is_dir():
        with _errors_of(name):  # such as of a name that can be none on the hub
            cached = try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    return sorted(path for pattern in ("config.json", "*.safetensors", "*.bin") for path in folder.glob(pattern))


def _gguf_file(name: str) -> Path | None:
    """The `.gguf` file that `name` stands for, if it stands for one."""
    if name in EMBEDDED and not Path(name).is_dir():
        return embedded_file(name)
    if not name.endswith(".gguf"):
        return None
    if not Path(name).is_file():
        raise SubFitError(f"the model file {name} does not exist")
    return Path(name)
