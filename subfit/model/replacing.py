"""Puts bypasses into a model, and takes them out again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from subfit.errors import SubFitError
from subfit.model.dtypes import placed, stream_dtype
from subfit.model.modeling_subfit import SkippedNorm, Zero, stand_in
from subfit.model.submodules import Site, decoder_layers


@dataclass(frozen=True)
class StandIn:
    """What stands in a compressed model where a branch was.

    Attributes:
        site: where.
        bypass: maps what it reads to what is added to the stream.
        skipped_norms: module paths of the norms that are replaced by the identity.
    """

    site: Site
    bypass: nn.Module
    skipped_norms: tuple[str, ...]


class Switch:
    """Modules of a model that can be exchanged for others, and back.

    Args:
        model: the model.
        new: what stands at which path, in the decoder's layers, when it is on.
        old: what stands there when it is off.

    Attributes:
        first_layer: index of the first decoder layer that it changes.
        stand_in: what stands where a branch was that leaves the model, if one does.
    """

    stand_in: StandIn | None = None

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


class Replacement(Switch):
    """What was put in the place of a site; see the classes that derive from it.

    Attributes:
        site: the site.
        explained: share of the targets' variance that the fit explains, if known.
    """

    site: Site
    explained: float | None = None


class BypassReplacement(Replacement):
    """A bypass in the place of a site of a model, which can be switched off and on.

    An output norm is always replaced by the identity, because the bypass is fitted to what the branch adds after it; the
    input norm, if no other branch reads it, where the bypass does not read what it gives.

    Args:
        model: the model that the site is in.
        site: where to put the bypass.
        bypass: maps what it reads to what is added to the stream; it gets the device of the branch and the data type of
            the stream, and is rounded to what the model is saved in.
        reads: see `Bypass.reads`.
        elsewhere: other modules to exchange with it, by path.
    """

    def __init__(
        self, model: nn.Module, site: Site, bypass: nn.Module, reads: str, elsewhere: Mapping[str, nn.Module] | None = None
    ):
        if reads == "stream" and site.shares_norm:
            raise SubFitError(f"{site.name}: its input norm feeds another branch too, so its bypass cannot read the stream")
        self.site = site
        device = next(model.get_submodule(site.path).parameters()).device
        like = torch.empty(0, dtype=stream_dtype(model), device=device)
        self.bypass = placed(bypass, model, like)
        skips_input_norm = reads != "input" and not site.shares_norm
        skipped = (site.input_norm if skips_input_norm else None, site.output_norm)
        self.stand_in = StandIn(site, self.bypass, tuple(norm for norm in skipped if norm is not None))
        new = {site.path: stand_in(self.bypass, site.as_dict(), counts=False)}
        new.update({norm: placed(SkippedNorm(), model, like) for norm in self.stand_in.skipped_norms})
        self._leaving = [model.get_submodule(path) for path in new]
        new.update(elsewhere or {})
        super().__init__(model, new, {path: model.get_submodule(path) for path in new})

    def trainable(self) -> Iterable[nn.Module]:
        return (self.bypass,)

    def removed_parameters(self) -> int:
        return sum(p.numel() for module in self._leaving for p in module.parameters())


class FoldedReplacement(BypassReplacement):
    """Nothing in the place of a site, as a map was folded into a weight that is kept.

    Args:
        model: the model that the site is in.
        site: the site.
        path: of the linear layer that the map was folded into.
        folded: that layer with the map in its weight.
    """

    def __init__(self, model: nn.Module, site: Site, path: str, folded: nn.Module):
        super().__init__(model, site, Zero(), "nothing", {path: folded})


class RetrainedReplacement(Replacement):
    """A site whose whole layer stays with other weights: it keeps its structure, its size and its key-value cache.

    Args:
        model: the model that the site is in.
        site: a site of the layer.
        layer: the dense layer.
        trained: the layer to put in its place.
    """

    def __init__(self, model: nn.Module, site: Site, layer: nn.Module, trained: nn.Module):
        weight = next(layer.parameters())
        self.site = site
        path = next(path for path, module in model.named_modules() if module is layer)
        super().__init__(model, {path: placed(trained, model, weight)}, {path: layer})

    def removed_parameters(self) -> int:
        return self.site.parameters  # which others replace


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
