"""Weights that come quantised: de-quantised to be compressed, and saved as they came where a compression leaves them.

Of the methods that transformers loads, these are the ones whose de-quantised weights compute what the quantised ones do:
4 bits of bitsandbytes, and what compressed-tensors stores of weights alone.
"""

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import CompressedTensorsConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer

from subfit.errors import SubFitError
from subfit.model.digests import tensor_digest

SECTION = "quantization_config"  # of a configuration
NOT_QUANTISED = {"bitsandbytes": "llm_int8_skip_modules", "compressed-tensors": "ignore"}  # the key that names such layers


@dataclass(frozen=True)
class Quantised:
    """How the weights of a model came.

    Attributes:
        section: what the configuration says of it.
        stored: what the checkpoint has for the weight of a linear layer, by the layer's path and by name.
        digests: the digest of the weight that it stands for, by the layer's path.
    """

    section: dict[str, Any]
    stored: dict[str, dict[str, Tensor]]
    digests: dict[str, str]


def quantisation_of(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what a configuration says of quantised weights, if the de-quantised ones compute the same.

    Raises:
        SubFitError: if the package is missing that reads them.
    """
    section = content.get(SECTION)
    if not isinstance(section, dict) or not (_is_of_4_bits(section) or _is_of_weights_alone(section)):
        return None
    package = section["quant_method"]
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise SubFitError(f"its weights are quantised, which a package of its own reads: pip install {package}")
    return section


def configuration_of(name: str) -> dict[str, Any]:
    """Returns the configuration of a model by its name, as plain data."""
    return PreTrainedConfig.get_config_dict(name)[0]


def _is_of_4_bits(section: Mapping[str, Any]) -> bool:
    return section.get("quant_method") == "bitsandbytes" and section.get("load_in_4bit") is True


def _is_of_weights_alone(section: Mapping[str, Any]) -> bool:
    if section.get("quant_method") != "compressed-tensors" or section.get("quantization_status") != "compressed":
        return False
    others = [section.get(name) for name in ("kv_cache_scheme", "sparsity_config", "transform_config")]
    groups = section.get("config_groups", {}).values()
    return not any([*others, *(its.get(f"{side}_activations") for its in groups for side in ("input", "output"))])


def read_dequantised(
    load: Callable[..., Any], section: Mapping[str, Any], *args: Any, dtype: Any = "auto", **options: Any
) -> Any:
    """Returns the model that a loader makes of a checkpoint with quantised weights, with those that they stand for."""
    if section["quant_method"] == "compressed-tensors":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")  # which is not all of it
            model = load(*args, dtype=dtype, **{SECTION: CompressedTensorsConfig(dequantize=True)}, **options)
    else:
        model = load(*args, dtype=dtype, **options)  # in the checkpoint's type, whatever is given
        model = model.dequantize(dtype=model.dtype)
        for weight in model.parameters() if dtype != "auto" else ():
            weight.data = weight.data.to(dtype)
    forget_names(model)
    return model


def is_quantised(model: Any) -> bool:
    """Whether weights of a model in memory are quantised."""
    quantizer = getattr(model, "hf_quantizer", None)
    return quantizer is not None and not getattr(quantizer.quantization_config, "dequantize", False)


def how_to_dequantise(quantizer: Any) -> str:
    """Returns what to do about weights that are quantised by what `quantizer` does."""
    load = "give subfit.compress the model that AutoModelForCausalLM.from_pretrained"
    if type(quantizer)._dequantize is not HfQuantizer._dequantize:
        return f"{load}(...).dequantize() returns"
    config = quantizer.quantization_config
    if hasattr(config, "dequantize"):
        return f"{load}(..., {SECTION}={type(config).__name__}(dequantize=True)) returns"
    return "give a checkpoint whose are not"


def forget_names(model: Any) -> None:
    """Has transformers save a de-quantised model as a dense one: some of what it was loaded by cannot be reversed."""
    if is_quantised(model):
        return
    try:
        for conversion in getattr(model, "_weight_conversions", None) or ():
            conversion.reverse_transform()
    except NotImplementedError:
        del model._weight_conversions


def read_quantised(load: Callable[..., Any], section: dict[str, Any], *args: Any, **options: Any) -> Any:
    """Returns a model as `read_dequantised` does; its attribute `came` says how the weights came."""
    stored = load(*args, **options).state_dict()
    model = read_dequantised(load, section, *args, **options)
    weights = {name: value for name, value in model.state_dict().items() if name.endswith(".weight")}
    paths = {name.removesuffix(".weight") for name, value in weights.items() if _differs(stored.get(name), value)}
    came: dict[str, dict[str, Tensor]] = {path: {} for path in sorted(paths)}
    for name, value in stored.items():
        path = name.rpartition(".weight")[0]
        if path in came:
            came[path][name] = value
    model.came = Quantised(section, came, {path: tensor_digest(weights[f"{path}.weight"]) for path in came})
    return model


def _differs(stored: Tensor | None, value: Tensor) -> bool:
    return stored is None or (stored.dtype, stored.shape) != (value.dtype, value.shape)


def as_they_came(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights of a model, by name, with the quantised ones that came for those that are still the same."""
    came: Quantised | None = getattr(model, "came", None)
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        path = name.removesuffix(".weight")
        if came and path in came.stored and tensor_digest(value) == came.digests[path]:
            found |= came.stored[path]
        else:
            found[name] = value
    return found


def write_section(folder: Path, model: Any) -> None:
    """Makes the configuration of a checkpoint say which of its weights are quantised, and how."""
    came: Quantised | None = getattr(model, "came", None)
    if came is None:
        return
    written: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            written |= set(weights.keys())
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    others = [path for path in linear if not came.stored.get(path) or not came.stored[path].keys() <= written]
    key = NOT_QUANTISED[came.section["quant_method"]]
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content[SECTION] = {**came.section, key: sorted({*(came.section.get(key) or ()), *others})}
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
