"""Makes the replacements in a model permanent, so that it can be saved."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from subfit.errors import SubFitError
from subfit.model.modeling_subfit import FORMAT_VERSION, Shared, compressed_class, describe
from subfit.model.portable_code import portable_source
from subfit.model.quantised import how_to_dequantise, is_quantised
from subfit.model.replacing import StandIn, Switch
from subfit.model.sizes import counts_tokens


def check_replaceable(model: Any) -> None:
    """Raises SubFitError if a compressed version of `model` could not be saved and loaded again."""
    if hasattr(model.config, "subfit"):
        raise SubFitError("this model is compressed already; give the dense one")
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if known is not type(model):
        raise SubFitError(f"{type(model).__name__} is not a causal language model that AutoModelForCausalLM loads")
    if is_quantised(model):
        quantizer = model.hf_quantizer
        method = getattr(quantizer.quantization_config.quant_method, "value", quantizer.quantization_config.quant_method)
        raise SubFitError(
            f"the weights are quantised ({method}), which cannot be saved beside bypasses; {how_to_dequantise(quantizer)}"
        )


def finalize(model: Any, switches: Sequence[Switch]) -> None:
    """Makes the replacements in a model permanent, in place: the replaced modules are gone, and it can be saved.

    Modules that several bypasses share become the model's own (`model.subfit_shared`), `model.config.subfit` describes
    what stands where, and the model gets the class that its checkpoint loads as.

    Args:
        model: a causal language model of transformers, with all switches on.
        switches: what was exchanged in it.
    """
    placed = [switch.stand_in for switch in switches if switch.stand_in is not None]
    model.plugin_code = portable_source([its.bypass for its in placed])
    shared = _shared_modules([its.bypass for its in placed])
    model.config.subfit = {
        "format_version": FORMAT_VERSION,
        "base_model_type": model.config.model_type,
        "counter": start_counter(model, placed),
        "shared": {name: describe(module, {}) for name, module in shared.items()},
        "sites": [_described(its, shared) for its in placed],
    }
    for its in placed:
        for name, module in list(its.bypass.named_children()):
            if any(module is owner for owner in shared.values()):
                its.bypass.set_submodule(name, Shared(module))
    model.subfit_shared = nn.ModuleDict(shared)
    model.__class__ = compressed_class(type(model))


@contextmanager
def finalized(model: Any, switches: Sequence[Switch]) -> Iterator[None]:
    """Within the context, a model is as `finalize` leaves it, so that it can be saved; afterwards it is as before."""
    dense = type(model)
    finalize(model, switches)
    try:
        yield
    finally:
        model.__class__ = dense
        placed = [switch.stand_in for switch in switches if switch.stand_in is not None]
        for its in placed:
            for name, child in list(its.bypass.named_children()):
                if isinstance(child, Shared):
                    its.bypass.set_submodule(name, child.owner[0])
        if counter := model.config.subfit["counter"]:
            model.get_submodule(counter).counts = False
        del model.subfit_shared, model.plugin_code, model.config.subfit


def _shared_modules(bypasses: list[nn.Module]) -> dict[str, nn.Module]:
    """The children of bypasses that more than one of them has, by names of their own."""
    uses = Counter(module for bypass in bypasses for module in set(bypass.modules()))
    children = dict.fromkeys(child for bypass in bypasses for child in bypass.children())
    return {str(i): module for i, module in enumerate(child for child in children if uses[child] > 1)}


def start_counter(model: Any, placed: Sequence[StandIn]) -> str | None:
    """Lets a bypass that stands in a model count the tokens if no Attention is left that could; returns its path."""
    attentions = [its.site for its in placed if its.site.kind == "attention"]
    if not attentions or counts_tokens(model):
        return None
    model.get_submodule(attentions[0].path).counts = True
    return attentions[0].path


def _described(its: StandIn, shared: Mapping[str, nn.Module]) -> dict[str, Any]:
    """A stand-in as plain data."""
    return {
        **its.site.as_dict(),
        "skipped_norms": list(its.skipped_norms),
        "bypass": describe(its.bypass, shared),
    }
