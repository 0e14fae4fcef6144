"""Where the branches of a decoder are: found by what its modules do, not by a list of model names."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.model.modeling_subfit import grouped_parameters
from subfit.model.recording import Call, Layer, record_layers
from subfit.model.submodules import KINDS, Kind, Site, slot_of

ROUNDING = 0.02  # of a layer's output, in bfloat16, is well below this share of it
EXACT = 1e-4  # coefficients that differ by less are the same
TINY = 1e-6  # values that are a smaller share of the mean are not told from 0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What a core reads of the stream within a layer.

    Attributes:
        norm: the input norm, if there is one.
        stage: how many branches have been added to the layer's input.
        carried: the coefficient of the layer's input in it.
    """

    norm: Call | None
    stage: int
    carried: float


@dataclass
class Term:
    """Something that a layer may add to the stream: what a core gives, after its output norm if it has one.

    Attributes:
        call: of the core.
        value: what is added.
        reads: what it reads of the stream; None if it reads something else.
        norm: the output norm.
    """

    call: Call
    value: Tensor
    reads: Reading | None
    norm: Call | None = None


def find_sites(model: Any) -> list[Site]:
    """Finds the branches of every decoder layer, in the order in which the stream meets them.

    A forward pass over two tokens shows what each child of a layer read and gave. Children with matrices are cores, those
    without are norms. By least squares, what a norm or a core reads is found to be a sum of the stream and of what other
    cores gave, and so is what the layer gives: c0 * h + sum of c_i * branch_i. A branch is a site if it reads the stream,
    is added, and gives nothing to other layers; what else is added stays as it is.

    Args:
        model: a causal language model of transformers.

    Raises:
        SubFitError: if a layer is not such a sum, or no layer has a site.
    """
    layers = record_layers(model)
    sites = [site for index, layer in enumerate(layers) for site in _sites_of_layer(model, index, layer)]
    shared = [call.path for layer in layers for call in layer.children if call.passed_on]
    if shared:
        logger.warning("kept, as they give values to later layers, too: %s", ", ".join(shared))
    if not sites:
        raise SubFitError(f"no layer of {type(model).__name__} has an Attention, mixer or FeedForward of its own")
    return sites


def _sites_of_layer(model: nn.Module, index: int, layer: Layer) -> list[Site]:
    name, own = f"layer {index} of {type(model).__name__}", layer.own
    if own.before.shape != own.after.shape or own.before.ndim != 3:
        shapes = f"{tuple(own.before.shape)} and {tuple(own.after.shape)}"
        raise SubFitError(f"{name} does not read and give one residual stream (batch, tokens, d), but {shapes}")
    if not own.after.isfinite().all():
        raise SubFitError(f"{name} gives NaN or infinite values")
    terms = _terms(model, layer)
    carried, *coefficients = _fit(own.after, [own.before, *(term.value for term in terms)]) or [0.0]
    if not carried:
        modules = ", ".join(call.path.rpartition(".")[2] for call in layer.children)
        raise SubFitError(f"{name} does not give the stream that it reads plus what its modules add ({modules})")
    silent = [not term.value.any() for term in terms]  # their coefficients cannot be seen, and do not matter
    branches = [
        (term, term.reads, _rounded((coefficient or carried) * term.reads.carried / carried, EXACT))
        for term, coefficient, nothing in zip(terms, coefficients, silent, strict=True)
        if (coefficient or nothing) and term.reads is not None and not term.call.passed_on
    ]
    stages = sorted({reads.stage for _, reads, _ in branches})
    sites = [
        replace(
            _site(model, index, layer, term, reads),
            coefficient=coefficient,
            stage=stages.index(reads.stage),
            shares_norm=reads.norm is not None and _readers(reads.norm, layer, branches) > 1,
            layer_sites=len(branches),
        )
        for term, reads, coefficient in branches
    ]
    return _labelled(sorted(sites, key=lambda site: (site.stage, KINDS.index(site.kind))))


def _readers(norm: Call, layer: Layer, branches: list[tuple[Term, Reading, float]]) -> int:
    """How many children of a layer read what a norm gives, as it is or, if they are branches, scaled."""
    paths = {call.path for call in layer.children if call.read is norm.gave or _equal(call.before, norm.after)}
    return len(paths | {term.call.path for term, reads, _ in branches if reads.norm is norm})


def _terms(model: nn.Module, layer: Layer) -> list[Term]:
    """What the cores of a layer give that may be added to the stream."""
    terms: list[Term] = []
    norms: list[Reading] = []  # that read the stream
    for call in layer.children:
        if _equal(call.before, call.after):
            continue  # such as a dropout
        core = any(p.ndim > 1 for p in model.get_submodule(call.path).parameters())
        reads = _linked(call, norms) if core else None
        reads = reads or _reading(call, layer.own, terms)
        if core and call.after.numel() == layer.own.before.numel():
            terms.append(Term(call, call.after.reshape(layer.own.before.shape), reads))
        elif not core and reads is not None:
            norms.append(replace(reads, norm=call))
        elif not core:
            for term in terms:
                if term.norm is None and _equal(term.value, call.before):
                    term.norm, term.value = call, call.after.reshape(term.value.shape)
                    break
    return terms


def _linked(call: Call, norms: list[Reading]) -> Reading | None:
    """The norm whose output a core reads, as it is or scaled."""
    same = [n for n in norms if n.norm is not None and n.norm.gave is call.read]
    same += [n for n in norms if n.norm is not None and _equal(n.norm.after, call.before)]
    scaled = (n for n in norms if n.norm is not None and n.norm.after.numel() == call.before.numel())
    return next(iter(same), None) or next((n for n in scaled if n.norm and _fit(call.before, [n.norm.after])), None)


def _reading(call: Call, own: Call, terms: list[Term]) -> Reading | None:
    """What of the stream a module reads itself, if it does."""
    if call.before.numel() != own.before.numel():
        return None
    earlier = [term.value for term in terms if term.call.ended < call.began]
    carried, *others = _fit(call.before, [own.before, *earlier]) or [0.0]
    return Reading(None, sum(map(bool, others)), carried) if carried else None


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values, whatever their shapes."""
    return a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def _fit(target: Tensor, columns: list[Tensor]) -> list[float] | None:
    """The coefficients of a sum of tensors that is `target`; None if it is none.

    Each value is weighted by its own size and those that it is the sum of, as is the size of its rounding error. A
    coefficient is 0 or 1 where it differs from it by no more than six times its standard error.
    """
    y, x = target.flatten(), torch.stack([column.flatten() for column in columns], 1)
    sizes = y.abs() + x.abs().sum(1)
    weight = 1 / (sizes + TINY * sizes.mean()).clamp_min(torch.finfo(y.dtype).tiny)
    scale = (x * weight[:, None]).norm(dim=0).clamp_min(torch.finfo(y.dtype).tiny)
    inverse = torch.linalg.pinv(x * weight[:, None] / scale)
    found = inverse @ (y * weight) / scale
    rest = y - x @ found
    if not rest.norm() < ROUNDING * y.norm():
        return None
    spread = (rest * weight).square().sum() / max(len(y) - x.shape[1], 1)
    errors = (6 * (spread * inverse.square().sum(1)).sqrt() / scale).clamp_min(EXACT)
    return [_rounded(float(c), float(error)) for c, error in zip(found, errors, strict=True)]


def _rounded(value: float, error: float) -> float:
    return next((plain for plain in (0.0, 1.0) if abs(value - plain) <= error), value)


def _site(model: nn.Module, index: int, layer: Layer, term: Term, reads: Reading) -> Site:
    """One site, from what its branch read and gave."""
    call, core = term.call, model.get_submodule(term.call.path)
    removed = [core] if term.norm is None else [core, model.get_submodule(term.norm.path)]
    output = next((c for c in layer.calls if c.gave is call.gave and c.path.startswith(f"{call.path}.")), None)
    site = Site(
        kind=_kind(call),
        layer=index,
        path=call.path,
        input_norm=reads.norm.path if reads.norm else None,
        output_norm=term.norm.path if term.norm else None,
        shares_norm=False,
        slot=slot_of(core, index) if call.slot is None else call.slot,
        returns=call.returns,
        width=layer.own.before.shape[-1],
        parameters=sum(p.numel() for module in removed for p in module.parameters()),
        output_projection=output.path if output else None,
        hidden=output.read.shape[-1] if output else 0,
        overwritten=not _equal(call.gave.detach().cpu().double(), call.after),
    )
    return _with_groups(site, core, call.groups) if output and call.groups else site


def _with_groups(site: Site, core: nn.Module, groups: int) -> Site:
    """The site of an Attention with what is known of its key-value groups."""
    grouped = {module._parameters[name] for module, name, _ in grouped_parameters(core, site.output_name)}
    others = {*core.parameters()} - grouped - {core.get_submodule(site.output_name).bias}
    sizes = [sum(p.numel() for p in found) for found in (grouped, others)]
    return replace(site, groups=groups, group_parameters=sizes[0] // groups, common_parameters=sizes[1])


def _kind(call: Call) -> Kind:
    if call.slot is not None:
        return "attention" if call.keys else "mixer"
    return "attention" if call.mixes else "ffn"


def _labelled(sites: list[Site]) -> list[Site]:
    """The sites of a layer, with names of their own: the second of a kind is named after its module, too."""
    seen: Counter[Kind] = Counter()
    found = []
    for site in sites:
        found.append(replace(site, label=site.path.rpartition(".")[2]) if seen[site.kind] else site)
        seen[site.kind] += 1
    return found
