"""Checks what a compressed model's `config.json` says of its bypasses, before a tensor is allocated."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import nn
from transformers.cache_utils import CacheLayerMixin, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from subfit.errors import SubFitError, shown
from subfit.model import modeling_subfit
from subfit.model.modeling_subfit import EmptySlot, KeptGroups, token_map  # type: ignore[attr-defined]
from subfit.model.submodules import Site, decoder_layers, slot_of
from subfit.options.typed import typed_arguments

PLACE = "config.json: subfit"
MOST_RETURNED = 9  # values of a branch's tuple
TOKENS = 2  # that a bypass is tried on, without memory for them


@dataclass(frozen=True, kw_only=True)
class SiteEntry(Site):
    """What is written of one replaced submodule; see `finalizing.finalize`."""

    skipped_norms: list[str]
    bypass: dict[str, Any]


@dataclass(kw_only=True)
class Section:
    """The section `subfit`; see `finalizing.finalize`."""

    base_model_type: str
    counter: str | None
    shared: dict[str, dict[str, Any]]
    sites: list[SiteEntry]
    format_version: int = 1


def check_section(content: Mapping[str, Any], plugin_code: bool) -> None:
    """Checks that the section `subfit` of a configuration can be built, and fits the dense architecture that it names.

    Every path must be there, each bypass must map the residual stream to its own shape, and the slots of the key-value cache
    must be those of the layers. All of this is found without memory for tensors, whatever sizes are given.

    Args:
        content: a configuration, as `config.json` has it.
        plugin_code: whether code in the checkpoint may run; then modules of classes that are not known here are not tried.

    Raises:
        SubFitError: if something is wrong; the message says where in the section.
    """
    given = content.get("subfit")
    if not isinstance(given, dict):
        raise SubFitError(f"{PLACE} is {shown(given)}; it must be a mapping")
    if isinstance(found := given.get("format_version"), int):
        modeling_subfit.check_format({"format_version": found})  # before a newer one's new keys are refused
    section = Section(**typed_arguments(Section, given, PLACE, _no_strategy))
    dense = _dense(section.base_model_type, content)
    shared = {name: _built(spec, {}, f"{PLACE}.shared.{name}", plugin_code) for name, spec in section.shared.items()}
    for number, site in enumerate(section.sites):
        place = f"{PLACE}.sites[{number}]"
        _check_site(site, dense, place)
        if [other.path for other in section.sites].count(site.path) > 1:
            raise SubFitError(f"{place}.path is {site.path!r}, which another site has, too")
        built = _built(site.bypass, shared, f"{place}.bypass", plugin_code, site, dense)
        _check_bypass(built, site.width, f"{place}.bypass")
    attentions = [site.path for site in section.sites if site.kind == "attention"]
    without = {s.slot for s in section.sites if s.kind == "attention" and s.bypass.get("class") != KeptGroups.__name__}
    kept = _caching_layers(dense) - without
    counters = [None, *attentions] if kept or not attentions else attentions  # needed where no Attention counts tokens
    if section.counter not in counters:
        raise SubFitError(f"{PLACE}.counter is {section.counter!r}; it must be {counters[0]!r}")


def _no_strategy(*given: Any) -> NoReturn:
    raise AssertionError("no field is a strategy")


def _dense(model_type: str, content: Mapping[str, Any]) -> Any:
    """The dense model without memory for its weights."""
    try:
        known = CONFIG_MAPPING[model_type]
        dense: Any = MODEL_FOR_CAUSAL_LM_MAPPING[known]
    except KeyError:
        none = "which transformers has no causal language model of"
        raise SubFitError(f"{PLACE}.base_model_type is {model_type!r}, {none}") from None
    config = known.from_dict(known._decode_special_floats({**content, "model_type": model_type}))  # such as infinity
    with torch.device("meta"):
        return dense._from_config(config)


def _caching_layers(dense: Any) -> set[int]:
    """The slots for keys and values in the cache that transformers makes for a dense model."""
    slots = DynamicCache(config=dense.config.get_text_config()).layers
    return {i for i, slot in enumerate(slots) if isinstance(slot, CacheLayerMixin) and not isinstance(slot, EmptySlot)}


def _check_site(site: SiteEntry, dense: Any, place: str) -> None:
    """Raises SubFitError unless a site is one of the dense model's."""
    root, layers = decoder_layers(dense)
    if not 0 <= site.layer < len(layers):
        raise SubFitError(f"{place}.layer is {site.layer}; it must be from 0 to {len(layers) - 1}")
    norms = {"input_norm": site.input_norm, "output_norm": site.output_norm}
    modules = dict(dense.named_modules())
    for name, path in {"path": site.path, **norms}.items():
        if path is not None and (path not in modules or not path.startswith(f"{root}.{site.layer}.")):
            raise SubFitError(f"{place}.{name} is {path!r}, which is no module of layer {site.layer}")
    core = modules[site.path]
    takes = signature(core.forward).parameters
    if site.kind == "ffn" and "attention_mask" in takes or site.kind == "attention" and len(takes) < 2:
        raise SubFitError(f"{place}.kind is {site.kind!r}, but {site.path} is a {type(core).__name__}")
    if not 0 <= site.returns <= MOST_RETURNED:
        raise SubFitError(f"{place}.returns is {site.returns}; it must be from 0 to {MOST_RETURNED}")
    slot = slot_of(core, site.layer)
    width = dense.config.get_text_config().hidden_size
    for name, found, wanted in (("slot", site.slot, slot), ("width", site.width, width)):
        if found != wanted:
            raise SubFitError(f"{place}.{name} is {found}; it must be {wanted}")
    if wrong := [norm for norm in site.skipped_norms if norm not in norms.values()]:
        raise SubFitError(f"{place}.skipped_norms names {wrong[0]!r}, which is no norm of the site")


def _built(
    spec: dict[str, Any],
    shared: Mapping[str, Any],
    place: str,
    plugin_code: bool,
    site: SiteEntry | None = None,
    dense: nn.Module | None = None,
) -> nn.Module | None:
    """A module without memory for its weights; None if it needs a class in the checkpoint's own code."""
    if any(module is None for module in shared.values()):
        return None
    try:
        with torch.device("meta"):
            return modeling_subfit.build(spec, shared, None if site is None else site.as_dict(), dense)
    except modeling_subfit.UnknownModule as error:
        if plugin_code:
            return None
        raise SubFitError(f"{place}: {error}") from error
    except Exception as error:  # whatever a class says of what it is given
        raise SubFitError(f"{place} cannot be built: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _check_bypass(bypass: nn.Module | None, width: int, place: str) -> None:
    """Raises SubFitError unless a bypass maps the stream (windows, tokens, width) to its own shape."""
    if bypass is None:
        return
    stream = torch.empty(1, TOKENS, width, device="meta")
    try:
        with torch.no_grad():
            shape = tuple(token_map(bypass)(stream).shape)
    except Exception as error:  # whatever a module says of a shape that it does not take
        raise SubFitError(f"{place} does not read {width} features: {' '.join(str(error).split())}") from error
    if shape != stream.shape:
        raise SubFitError(f"{place} gives {shape[-1] if shape else 0} features of {width}")
