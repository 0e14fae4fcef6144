"""The compressed model for plain transformers.

This file travels with every checkpoint, so that `AutoModelForCausalLM.from_pretrained(dir, trust_remote_code=True)` opens
it where the `subfit` package is not installed. It therefore imports torch and transformers only.

A compressed model is its dense architecture in which single branches have been replaced: `config.subfit` lists them with
the modules that stand in their place, and `SubFitMixin` puts these modules in before the weights are loaded.
"""

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

FORMAT_VERSION = 2  # of the section `subfit` of config.json; 1 had no number, and is read the same way
AUTO_MAP = {
    "AutoConfig": "modeling_subfit.SubFitConfig",
    "AutoModelForCausalLM": "modeling_subfit.SubFitForCausalLM",
}
NOT_DENSE = "it needs trust_remote_code=True"  # as the name of the weights' file in config.json; see `SubFitMixin`


# --- pieces that bypasses are built from, besides those of torch.nn ---------------------------------------------------


class Zero(nn.Module):
    """Adds nothing to the residual stream: a zero that broadcasts over the input (tokens, d) without memory of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(()).expand_as(x)


class Constant(nn.Module):
    """Adds the same vector (width) to every token."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand_as(x)


class Scale(nn.Module):
    """x * w + b, with a weight of its own for each dimension (weights = width), or one for all (weights = 1)."""

    def __init__(self, width: int, weights: int):
        super().__init__()
        self.width, self.weights = width, weights
        self.weight = nn.Parameter(torch.ones(weights))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, x, self.weight)


class Sum(nn.Sequential):
    """The sum of what its children give for the same input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(child(x) for child in self)


class Product(nn.Sequential):
    """The product of what its children give for the same input, as in a gated feed-forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = (child(x) for child in self)
        for other in others:
            first = first * other
        return first


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), a gated feed-forward with `hidden` units."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.width, self.hidden = width, hidden
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Shared(nn.Module):
    """A use of a module that several sites share; the model owns it once, under `subfit_shared`."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.owner = (module,)  # in a tuple: not registered here, so that its parameters are counted and saved once

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.owner[0](x)


# --- what stands in the place of a branch -----------------------------------------------------------------------------

try:
    from transformers.cache_utils import DummyLayer as EmptySlot
except ImportError:  # before transformers 5.23

    class EmptySlot(LinearAttentionCacheLayerMixin):  # type: ignore[no-redef]
        """Cache slot of a layer without Attention: holds nothing.

        To older versions it is a slot of linear attention: they take the count of tokens from the first slot that is not,
        and never prefetch it. It is neither sliding nor not, so that no mask is made to its size.
        """

        is_croppable = True
        is_sliding = None
        keys = values = None

        def lazy_initialization(self, *args, **kwargs):
            raise NotImplementedError("there is no Attention in this layer: nothing can be cached")

        update = update_conv_state = update_recurrent_state = lazy_initialization

        def get_max_length(self) -> int:
            return -1

        def _nothing_to_do(self, *args, **kwargs) -> None:
            pass

        offload = prefetch = reset = crop = reorder_cache = _nothing_to_do
        batch_repeat_interleave = batch_select_indices = activate_past_recording = _nothing_to_do


class TokenCounter(CacheLayerMixin):
    """Cache slot of a model without any Attention left: holds no keys or values, only knows how many tokens have passed."""

    supports_early_init = False
    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self):
        super().__init__()
        self.tokens = 0

    def lazy_initialization(self, key_states, value_states):
        raise RuntimeError("no Attention is left in this model: nothing can be cached")

    update = lazy_initialization

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.tokens

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.tokens -= abs(tokens_to_remove)

    def reset(self) -> None:
        self.tokens = 0

    def _nothing_to_do(self, *args, **kwargs) -> None:
        pass

    offload = prefetch = reorder_cache = batch_repeat_interleave = batch_select_indices = _nothing_to_do


class StatesAndCounter(LinearAttentionLayer, TokenCounter):  # type: ignore[override]
    """Cache slot of a state-space mixer, where no Attention is left in the model: counts tokens, too."""

    is_compileable = False

    def __init__(self):
        TokenCounter.__init__(self)
        LinearAttentionLayer.__init__(self)

    def crop(self, tokens_to_remove: int) -> None:
        LinearAttentionLayer.crop(self, tokens_to_remove)
        TokenCounter.crop(self, tokens_to_remove)

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        TokenCounter.reset(self)

    offload, prefetch, reorder_cache = (
        getattr(LinearAttentionLayer, name) for name in ("offload", "prefetch", "reorder_cache")
    )


def first_argument(args, kwargs):
    """Returns what a branch reads: its first argument."""
    return args[0] if args else next(iter(kwargs.values()))


class AttentionBypass(nn.Module):
    """Stands where an Attention stood and gives its branch's input to a bypass.

    Args:
        bypass: maps the branch input (batch, tokens, d) to what the branch gave, of the same shape.
        slot: the layer's index in the key-value cache.
        returns: length of the tuple that the Attention returned; 0 for a bare tensor.
        counts: whether this site keeps the count of tokens, because no Attention is left that could.

    A cache that was made for the dense architecture holds a slot for this layer, and transformers asks the first slot for
    the number of tokens seen. The slot is therefore exchanged on the first call, whoever made the cache: for an empty one,
    which transformers passes over in favour of the first real Attention, or for the counter. A slot that a state-space mixer
    of the same layer shares keeps the mixer's states.
    """

    def __init__(self, bypass: nn.Module, slot: int, returns: int, counts: bool):
        super().__init__()
        self.bypass = bypass
        self.slot = slot
        self.returns = returns
        self.counts = counts

    def forward(self, *args, **kwargs):
        hidden_states = first_argument(args, kwargs)
        for value in (*args, *kwargs.values()):  # architectures differ in how they name it
            if isinstance(value, Cache):
                self.release_slot(value, hidden_states.shape[1])
        y = self.bypass(hidden_states)
        return (y,) + (None,) * (self.returns - 1) if self.returns else y

    def release_slot(self, cache: Cache, tokens: int) -> None:
        """Exchanges this layer's slot in `cache`, and counts `tokens` where that is this site's task."""
        while len(cache.layers) <= self.slot:
            cache.layers.append(DynamicLayer())  # as a cache without a configuration grows by itself
        slot: Any = cache.layers[self.slot]
        kind: Any
        if isinstance(slot, LinearAttentionCacheLayerMixin) and not isinstance(slot, EmptySlot):
            kind = StatesAndCounter if self.counts else LinearAttentionLayer
        else:
            kind = TokenCounter if self.counts else EmptySlot
        if type(slot) is not kind:
            new = cache.layers[self.slot] = kind()
            if isinstance(new, LinearAttentionLayer):
                vars(new).update({name: value for name, value in vars(slot).items() if name in vars(new)})
            slot = new
        if isinstance(slot, TokenCounter):
            slot.tokens += tokens


class KeptGroups(nn.Module):
    """Stands where an Attention stood: some of its key-value groups, with the query heads that read them, and a map beside.

    It is called as the Attention was and gives what that gave, with what the map makes of the branch's input added. Its slot
    of the cache holds the keys and values of the kept groups alone, also where it was allocated for the dense architecture
    before anything was in it.

    Args:
        attention: has the projections of the kept groups alone; see `keep_groups`.
        beside: maps the branch input (batch, tokens, d) to what is added, of the same shape.
        slot: the layer's index in the key-value cache.
        groups: how many groups the Attention had.
        kept: how many of them are kept.
    """

    def __init__(self, attention: nn.Module, beside: nn.Module, slot: int, groups: int, kept: int):
        super().__init__()
        self.attention = attention
        self.beside = beside
        self.slot = slot
        self.groups = groups
        self.kept = kept

    def forward(self, *args, **kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, Cache):
                self.adapt_slot(value)
        gave = self.attention(*args, **kwargs)
        y, *others = gave if isinstance(gave, tuple) else (gave,)
        y = y + self.beside(first_argument(args, kwargs))
        return (y, *others) if isinstance(gave, tuple) else y

    def adapt_slot(self, cache: Cache) -> None:
        """Has this layer's slot in `cache` allocated anew if it was allocated for another number of groups.

        Raises:
            ValueError: if there are keys and values in it.
        """
        slot: Any = cache.layers[self.slot] if self.slot < len(cache.layers) else None
        keys = getattr(slot, "keys", None)
        if keys is not None and keys.ndim == 4 and keys.shape[1] != self.kept:
            if int(slot.get_seq_length()):
                raise ValueError(f"slot {self.slot} of the cache was filled by another model: {self.kept} groups are kept")
            slot.is_initialized = False


def keep_groups(attention: nn.Module, output: str, groups: int, kept: Sequence[int]) -> nn.Module:
    """Returns a copy of an Attention that has some of its key-value groups alone, with the query heads that read them.

    The rows of its linear layers, and of its own parameters, are taken to be those of one group after the other, and so are
    the columns of its output projection; attributes whose names end in "heads" are taken to count heads. Where that is so
    the copy computes what the Attention would with zeros in all other columns; the caller must see to it. The output
    projection of the copy has a bias.

    Args:
        attention: the Attention, which stays as it is.
        output: path of its output projection.
        groups: how many groups it has.
        kept: the indices of those to keep.
    """
    configs = [v for module in attention.modules() for v in vars(module).values() if isinstance(v, PreTrainedConfig)]
    copied = copy.deepcopy(attention, {id(value): value for value in (*configs, *attention.parameters())})
    places = {(module, name): dimension for module, name, dimension in grouped_parameters(copied, output)}
    for module in copied.modules():
        for name, p in module._parameters.items():
            if p is not None:
                dimension = places.get((module, name))
                value = p.detach().clone() if dimension is None else _of_groups(p.detach(), dimension, groups, kept)
                module._parameters[name] = nn.Parameter(value, p.requires_grad)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        for name, value in vars(module).items():
            if name.endswith("heads") and type(value) is int and value % groups == 0:
                setattr(module, name, value // groups * len(kept))
    last: Any = copied.get_submodule(output)
    if last.bias is None:
        last.bias = nn.Parameter(last.weight.new_zeros(last.out_features), last.weight.requires_grad)
    return copied


def grouped_parameters(attention: nn.Module, output: str):
    """Yields the parameters of an Attention that its groups have parts of: the module, the name, and the dimension."""
    last = attention.get_submodule(output)
    for module in attention.modules():
        if module is last:
            yield module, "weight", 1
        elif module is attention or isinstance(module, nn.Linear):
            yield from ((module, name, 0) for name, p in module._parameters.items() if p is not None)


def _of_groups(p: torch.Tensor, dimension: int, groups: int, kept: Sequence[int]) -> torch.Tensor:
    """The parts of a parameter that belong to the kept groups."""
    parts = p.unflatten(dimension, (groups, -1))
    return parts.index_select(dimension, torch.tensor(kept, device=p.device)).flatten(dimension, dimension + 1)


class MixerBypass(nn.Module):
    """Stands where a mixer stood that keeps states in the cache, and gives its branch's input to a bypass.

    Its states stay empty. They are marked as there, because architectures ask the cache whether there are any.
    """

    def __init__(self, bypass: nn.Module, slot: int, returns: int):
        super().__init__()
        self.bypass = bypass
        self.slot = slot
        self.returns = returns

    def forward(self, *args, **kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, Cache):
                slot: Any = value.layers[self.slot]
                before = slot.has_previous_state
                slot.has_previous_state = dict.fromkeys(before, True) if isinstance(before, dict) else True
        y = self.bypass(first_argument(args, kwargs))
        return (y,) + (None,) * (self.returns - 1) if self.returns else y


class FeedForwardBypass(nn.Module):
    """Stands where a FeedForward stood whose callers expect a tuple, or change in place what it gives."""

    def __init__(self, bypass: nn.Module, returns: int):
        super().__init__()
        self.bypass = bypass
        self.returns = returns

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        y = self.bypass(hidden_states).contiguous()
        return (y,) + (None,) * (self.returns - 1) if self.returns else y


class SkippedNorm(nn.Identity):
    """Stands where a norm stood; some layers ask its weight for the data type."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)


def stand_in(bypass: nn.Module, site: dict[str, Any], counts: bool) -> nn.Module:
    """Returns the module to put at `site["path"]`, so that `bypass` answers calls made to the branch that was there."""
    if isinstance(bypass, KeptGroups):
        return bypass
    if site["kind"] == "attention":
        return AttentionBypass(bypass, site["slot"], site["returns"], counts)
    if site["kind"] == "mixer":
        return MixerBypass(bypass, site["slot"], site["returns"])
    wrapped = site["returns"] or site.get("overwritten")
    return FeedForwardBypass(bypass, site["returns"]) if wrapped else bypass


def token_map(bypass: nn.Module) -> nn.Module:
    """Returns the part of a bypass that maps each token by itself, (..., d) to (..., d): all of it, but for kept heads."""
    return bypass.beside if isinstance(bypass, KeptGroups) else bypass


# --- a module's structure as plain data -------------------------------------------------------------------------------


def describe(module: nn.Module, shared: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Returns the structure of `module`, without its tensors, as data that `build` turns into an equal module.

    A module class is described by its constructor's arguments, read from attributes of the same names, as torch.nn keeps
    them; a container by its children. `shared` names the modules that belong to more than one site.
    """
    for name, owner in shared.items():
        if module is owner:
            return {"shared": name}
    if isinstance(module, KeptGroups):
        return {"class": "KeptGroups", "kept": module.kept, "beside": describe(module.beside, shared)}
    if isinstance(module, nn.Sequential):
        return {"class": type(module).__name__, "children": [describe(child, shared) for child in module]}
    arguments = {}
    for name in inspect.signature(type(module).__init__).parameters:
        if name == "bias":
            arguments[name] = module.bias is not None
        elif name not in ("self", "device", "dtype") and hasattr(module, name):
            arguments[name] = getattr(module, name)
    return {"class": type(module).__name__, **({"arguments": arguments} if arguments else {})}


class UnknownModule(ValueError):
    """A module class is neither known here nor one of torch.nn."""


def build(
    spec: dict[str, Any],
    shared: Mapping[str, nn.Module],
    site: dict[str, Any] | None = None,
    model: nn.Module | None = None,
) -> nn.Module:
    """Builds the module that `describe` described, with fresh tensors.

    Args:
        shared: the modules that belong to more than one site, by name.
        site, model: where the module is to stand, of whose Attention there heads may be kept.
    """
    if "shared" in spec:
        return Shared(shared[spec["shared"]])
    found = globals().get(spec["class"]) or getattr(nn, spec["class"], None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        remedy = "if it is in the checkpoint's own code, let that run: --trust_remote_code, or trust_remote_code=True"
        raise UnknownModule(f"the bypass module {spec['class']!r} is neither in torch.nn nor in subfit; {remedy}")
    if found is KeptGroups:
        if site is None or model is None or not 0 < spec["kept"] <= site["groups"]:
            raise ValueError("there is no Attention of which so many heads could be kept")
        output = site["output_projection"].removeprefix(site["path"] + ".")
        attention = keep_groups(model.get_submodule(site["path"]), output, site["groups"], range(spec["kept"]))
        return KeptGroups(attention, build(spec["beside"], shared), site["slot"], site["groups"], spec["kept"])
    if "children" in spec:
        return found(*(build(child, shared) for child in spec["children"]))
    return found(**spec.get("arguments", {}))


def install(model: nn.Module, subfit: dict[str, Any]) -> None:
    """Puts the bypasses that `subfit` (the section of the configuration) describes into a dense `model`, in place."""
    model.subfit_shared = nn.ModuleDict({name: build(spec, {}) for name, spec in subfit["shared"].items()})
    for site in subfit["sites"]:
        bypass = build(site["bypass"], model.subfit_shared, site, model)
        standing = stand_in(bypass, site, site["path"] == subfit["counter"])
        if site["kind"] == "mixer":  # whose buffers the model may initialise, as that of Falcon-H1 does
            for name, buffer in model.get_submodule(site["path"]).named_buffers(recurse=False):
                standing.register_buffer(name, buffer, persistent=False)
        model.set_submodule(site["path"], standing)
        for norm in site["skipped_norms"]:
            model.set_submodule(norm, SkippedNorm())


def check_format(subfit: dict[str, Any]) -> None:
    """Raises ValueError if a configuration's section was written by a newer version of SubFit than this file."""
    found = subfit.get("format_version", 1)
    if found > FORMAT_VERSION:
        raise ValueError(
            f"written by a newer subfit (format {found}; this one reads up to {FORMAT_VERSION}): upgrade subfit, "
            "or give trust_remote_code=True"
        )


# --- classes that transformers loads ----------------------------------------------------------------------------------


class SubFitConfig:
    """Reads a compressed model's config.json as the configuration of its dense architecture."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: `AUTO_MAP` is written with every checkpoint."""

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        config, kwargs = PreTrainedConfig.get_config_dict(path, **kwargs)
        check_format(config["subfit"])
        dense = CONFIG_MAPPING[config["subfit"]["base_model_type"]]
        return dense.from_dict({**config, "model_type": dense.model_type}, **kwargs)


class SubFitMixin:
    """What a compressed model adds to the class of its dense architecture.

    Attributes:
        plugin_code: source of plug-ins' modules, to follow this file's in a checkpoint; the file of a checkpoint has it.
    """

    plugin_code = ""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        install(self, config.subfit)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Says no, as the architecture is one of transformers: its buffers that no checkpoint has are initialised."""
        return False

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Saves as transformers does, with this file beside the weights and marked as needed to load them.

        The saved model type is the dense one, so that AutoConfig and AutoTokenizer need no code of ours. Loaded as a dense
        model, the replaced branches would silently be random. The name given for the file of the weights prevents it: as it
        is not one of a file, transformers refuses it, and its error ends with this name.
        """
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text())
        config.update(architectures=[type(self).__name__], auto_map=AUTO_MAP, transformers_weights=NOT_DENSE)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        path.with_name("modeling_subfit.py").write_text(Path(__file__).read_text() + self.plugin_code)


_classes: dict[type, type] = {}


def compressed_class(dense: type) -> type:
    """Returns the class of compressed models whose dense architecture is the class `dense`."""
    if dense not in _classes:
        from transformers import conversion_mapping  # with much that the plug-in for vLLM does not need

        name = "SubFit" + dense.__name__
        _classes[dense] = type(name, (SubFitMixin, dense), {"__module__": __name__})
        names_of_weights = conversion_mapping.get_checkpoint_conversion_mapping(dense.__name__)
        if names_of_weights is not None:  # they differ between files and model, as those of GPT-NeoX
            conversion_mapping.register_checkpoint_conversion_mapping(name, names_of_weights, overwrite=True)
    return _classes[dense]


class SubFitForCausalLM:
    """Loads a compressed model, of whatever architecture."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing to do: `AUTO_MAP` is written with every checkpoint."""

    @classmethod
    def from_pretrained(cls, path, *args, config, **kwargs):
        config = copy.deepcopy(config)
        config.transformers_weights = None  # the usual files, instead of NOT_DENSE
        return compressed_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]).from_pretrained(
            path, *args, config=config, **kwargs
        )

    @classmethod
    def _from_config(cls, config, **kwargs):
        return compressed_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])._from_config(config, **kwargs)
