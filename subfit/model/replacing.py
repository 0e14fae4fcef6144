"""Puts bypasses into a model, and takes them out again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from subfit.bypass import Reads
from subfit.errors import SubFitError
from subfit.model.modeling_subfit import FORMAT_VERSION, Shared, Zero, compressed_class, describe, stand_in
from subfit.model.portable_code import portable_source
from subfit.model.submodules import Site, decoder_layers


class Switch:
    """Modules of a model that can be exchanged for others, and back.

    Args:
        model: the model.
        new: what stands at which path, in the decoder's layers, when it is on.
        old: what stands there when it is off.

    Attributes:
        first_layer: index of the first decoder layer that it changes.
    """

    def __init__(self, model: nn.Module, new: Mapping[str, nn.Module], old: Mapping[str, nn.Module]):
        self.model = model
        self._new, self._old = dict(new), dict(old)
        root, _ = decoder_layers(model)
        self.first_layer = min(int(path.removeprefix(f"{root}.").split(".")[0]) for path in new)

    def on(self) -> None:
        """Puts the new modules in the places of the old ones."""
        self._put(self._new)

    def off(self) -> None:
        """Puts the old ones back."""
        self._put(self._old)

    def _put(self, modules: dict[str, nn.Module]) -> None:
        for path, module in modules.items():
            self.model.set_submodule(path, module)

    def trainable(self) -> Iterable[nn.Module]:
        """Returns the modules all of whose parameters may be fine-tuned."""
        return ()

    def removed_parameters(self) -> int:
        """Returns the number of parameters that leave the model."""
        return 0

    def stand_ins(self) -> dict[Site, nn.Module]:
        """Returns the sites whose branches leave the model, and what is there instead of each."""
        return {}


class Replacement(Switch):
    """A bypass in the place of a site of a model, which can be switched off and on.

    An output norm is always replaced by the identity, because the bypass is fitted to what the branch adds after it; the
    input norm, if no other branch reads it, where the bypass does not read what it gives.

    Args:
        model: the model that the site is in.
        site: where to put the bypass.
        bypass: maps what it reads to what is added to the stream.
        reads: see `Bypass.reads`.
        merged: modules elsewhere in the model, by path, that do the bypass's work; nothing is left at the site.

    Attributes:
        explained: share of the targets' variance that the fit explains, if known.
    """

    explained: float | None = None

    def __init__(
        self,
        model: nn.Module,
        site: Site,
        bypass: nn.Module,
        reads: Reads,
        merged: dict[str, nn.Module] | None = None,
    ):
        if reads == "stream" and site.shares_norm:
            raise SubFitError(f"{site.name}: its input norm feeds another branch too, so its bypass cannot read the stream")
        self.site = site
        weight = next(model.get_submodule(site.path).parameters())
        self.bypass = bypass.to(weight.device, weight.dtype).requires_grad_(False)
        skips_input_norm = site.input_norm is not None and reads != "input" and not site.shares_norm
        skipped = [site.input_norm if skips_input_norm else None, site.output_norm]
        self.skipped_norms = [norm for norm in skipped if norm is not None]
        self.left = Zero() if merged else self.bypass
        new = {site.path: stand_in(self.left, site.as_dict(), counts=False)}
        new.update({norm: nn.Identity() for norm in self.skipped_norms})
        self._leaving = [model.get_submodule(path) for path in new]
        new.update(merged or {})
        super().__init__(model, new, {path: model.get_submodule(path) for path in new})

    def trainable(self) -> Iterable[nn.Module]:
        return (self.left,)

    def removed_parameters(self) -> int:
        return sum(p.numel() for module in self._leaving for p in module.parameters())

    def stand_ins(self) -> dict[Site, nn.Module]:
        return {self.site: self.left}


class Retrained(Replacement):
    """A site whose layer stays with other weights: it keeps its structure, its size and its key-value cache.

    Args:
        model: the model that the site is in.
        site: a site of the layer.
        layer: the dense layer.
        trained: the layer to put in its place.
    """

    def __init__(self, model: nn.Module, site: Site, layer: nn.Module, trained: nn.Module):
        weight = next(layer.parameters())
        trained = trained.to(weight.device, weight.dtype).requires_grad_(False)
        path = next(path for path, module in model.named_modules() if module is layer)
        Switch.__init__(self, model, {path: trained}, {path: layer})
        self.site, self.skipped_norms = site, []
        self.bypass = trained

    def trainable(self) -> Iterable[nn.Module]:
        return ()

    def removed_parameters(self) -> int:
        return self.site.parameters  # which others replace

    def stand_ins(self) -> dict[Site, nn.Module]:
        return {}


@contextmanager
def switched_off(switches: Iterable[Switch]) -> Iterator[None]:
    """Within the context, the model is as it was before these switches, which are on, in this order."""
    switches = list(switches)
    turn_off(switches)
    try:
        yield
    finally:
        for switch in switches:
            switch.on()


def turn_off(switches: Sequence[Switch]) -> None:
    """Switches off the last first, as a later one may have changed what an earlier one has put there."""
    for switch in reversed(switches):
        switch.off()


def check_replaceable(model: Any) -> None:
    """Raises SubFitError if a compressed version of `model` could not be saved and loaded again."""
    if hasattr(model.config, "subfit"):
        raise SubFitError("this model is compressed already; give the dense one")
    if MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None) is not type(model):
        raise SubFitError(f"{type(model).__name__} is not a causal language model that AutoModelForCausalLM loads")


def finalize(model: Any, switches: Sequence[Switch], sites: list[Site]) -> None:
    """Makes what was exchanged in a model final, in place: what was replaced is gone, and the model can be saved.

    Modules that several bypasses share become the model's own (`model.subfit_shared`), `model.config.subfit` describes
    what stands where, and the model gets the class that its checkpoint loads as.

    Args:
        model: a causal language model of transformers, with all switches on.
        switches: what was exchanged in it.
        sites: all sites of the dense model.
    """
    replacements = [s for s in switches if isinstance(s, Replacement) and not isinstance(s, Retrained)]
    uses = Counter(id(module) for r in replacements for module in set(r.left.modules()))
    plugin_code = portable_source([replacement.left for replacement in replacements])
    shared: dict[str, nn.Module] = {}
    described = []
    replaced = {replacement.site for replacement in replacements}
    attentions = [site for site in sites if site.kind == "attention"]
    counter = attentions[0].path if replaced.issuperset(attentions) else None
    for replacement in replacements:
        for module in replacement.left.children():
            if uses[id(module)] > 1 and not any(module is owner for owner in shared.values()):
                shared[str(len(shared))] = module
        entry = {**replacement.site.as_dict(), "skipped_norms": replacement.skipped_norms}
        described.append({**entry, "bypass": describe(replacement.left, shared)})
        for name, module in list(replacement.left.named_children()):
            if any(module is owner for owner in shared.values()):
                replacement.left.set_submodule(name, Shared(module))
        if replacement.site.path == counter:
            model.get_submodule(counter).counts = True
    model.plugin_code = plugin_code
    model.subfit_shared = nn.ModuleDict(shared)
    model.config.subfit = {
        "format_version": FORMAT_VERSION,
        "base_model_type": model.config.model_type,
        "counter": counter,
        "shared": {name: describe(module, {}) for name, module in shared.items()},
        "sites": described,
    }
    model.__class__ = compressed_class(type(model))
