"""Fits the bypasses of the selected sites, from the dense stream at once or in depth order on the compressed one."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from subfit.bypass import Bypass
from subfit.calibration.cache import Cache
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError, attribute_errors_to, where
from subfit.fitting.regression import explained_variance
from subfit.fitting.statistics import Evidence, Plan, evidence_files, gather, read
from subfit.model.folding import last_kept_ffn, merged, output_projection
from subfit.model.modeling_subfit import Constant, Scale
from subfit.model.processes import is_distributed
from subfit.model.replacing import Replacement, Retrained, switched_off
from subfit.model.residual_stream import ResidualStream
from subfit.model.submodules import Seen, Site, watch

Target = Literal["branch", "dense", "corrected"]


def fit_one_shot(calibration: Calibration, plan: Plan) -> list[Replacement]:
    """Fits every bypass to what its branch adds in the dense model, in one pass; returns them switched off."""
    fitted: dict[Site, Replacement] = {}
    fit_each(calibration, plan, lambda replacement: fitted.update({replacement.site: replacement}))
    return [fitted[site] for site in plan]


def fit_each(calibration: Calibration, plan: Plan, done: Callable[[Replacement], None]) -> None:
    """Fits as `fit_one_shot`, and gives each bypass to `done` as soon as it is fitted; none is kept."""

    def fit(site: Site, evidence: dict[str, Tensor], common: Any = None) -> None:
        done(_replacement(calibration.model, site, plan[site], evidence, common))

    if any(bypass.reads == "previous" or bypass.needs == "layer" for bypass in plan.values()):
        raise SubFitError("a bypass that is merged into another site, or retrains a layer, needs fitting: sequential")
    with evidence_files(calibration) as files:
        grouped = {site for site, bypass in plan.items() if bypass.needs_group()}

        def keep(site: Site, evidence: dict[str, Tensor]) -> None:
            if site in grouped:
                files.put(site.name, evidence)
            else:
                fit(site, evidence)

        gather(calibration, plan, keep)
        for bypass, sites in _groups(plan).items():
            common = _common_part(calibration, bypass, sites, files)
            for site in sites:
                fit(site, files.load(site.name), common)


@torch.no_grad()
def fit_sequential(calibration: Calibration, plan: Plan, target: Target, correction: float = 1.0) -> list[Replacement]:
    """Fits the bypasses in depth order, each on the stream as the earlier ones have changed it; returns them switched on.

    Two streams advance side by side: h through the dense layers, and h^ through those already replaced. A bypass reads h^
    (or its norm) and is fitted to `target`: "branch", what the branch would add to h^; "dense", what it adds to h, y; or
    "corrected", y + correction * (h - h^), which pulls the compressed stream back onto the dense one (the idea of GPTAQ's
    asymmetric calibration, arXiv 2504.02692). What a group has in common is learned beforehand, on the dense stream.
    """
    model = calibration.model
    common = _common_parts(calibration, plan)
    merging = _merging(calibration, plan)
    fitted: dict[Site, Replacement] = {}
    dense = calibration.stream()
    moved = dense
    previous = torch.empty(0)  # what the FeedForward has added that a later bypass is merged into
    for layer in tqdm(range(len(dense.layers)), desc="fit", unit="layer"):
        sites = [site for site in plan if site.layer == layer]
        if sites and moved is dense:
            moved = dense.fork()
        here: list[Replacement] = []
        retrained = [site for site in sites if plan[site].needs == "layer"]
        if retrained:
            here += _retrain(calibration, plan, retrained, moved, dense)
            fitted.update((replacement.site, replacement) for replacement in here)
        for site in [site for site in sites if site not in retrained]:
            bypass, evidence = plan[site], Evidence(site, plan[site])
            corrects = target == "corrected" and not (site.shares_norm and here)  # parallel branches: correct once
            for batch in dense.batches if bypass.needs != "nothing" else ():
                seen = _run(moved, batch, model, site, "y" if target == "branch" else "x")
                if target == "branch":
                    y = seen.y
                else:
                    with switched_off(here):
                        kept = _run(dense, batch, model, site, "y")
                    y = kept.y.float()
                    if corrects:
                        y = y + correction * (kept.h.float() - seen.h.float())
                evidence.add(previous[batch] if site in merging else read(bypass, seen), y)
            fitted[site] = _replacement(model, site, bypass, evidence.collect(), common.get(bypass), merging.get(site))
            fitted[site].on()
            here.append(fitted[site])
            if site in merging:
                for batch in moved.batches:
                    moved.hidden[batch] += fitted[site].bypass(previous[batch])
        if layer == max((site.layer for site in plan), default=-1):
            break
        source = next((source for source in merging.values() if source.layer == layer), None)
        added = _advance(moved, model, source)
        if moved is not dense:
            with switched_off(here):
                _advance(dense, model)
        previous = previous if added is None else added
    return [fitted[site] for site in plan]


def _groups(plan: Plan) -> dict[Bypass, list[Site]]:
    """The sites of each bypass that has something to learn from all of them."""
    groups: dict[Bypass, list[Site]] = {}
    for site, bypass in plan.items():
        if bypass.needs_group():
            groups.setdefault(bypass, []).append(site)
    return groups


def _common_parts(calibration: Calibration, plan: Plan) -> dict[Bypass, Any]:
    """What each group of sites has in common, learned on the dense stream."""
    groups = _groups(plan)
    if not groups:
        return {}
    with evidence_files(calibration) as files:
        grouped = {site: plan[site] for site in plan if plan[site] in groups}
        gather(calibration, grouped, lambda site, evidence: files.put(site.name, evidence))
        return {bypass: _common_part(calibration, bypass, sites, files) for bypass, sites in groups.items()}


def _common_part(calibration: Calibration, bypass: Bypass, sites: list[Site], files: Cache) -> Any:
    """What a group of sites has in common; a module is rounded to the model's data type before anything is fitted to it."""
    common = bypass.fit_group(sites, (files.load(site.name) for site in sites))
    return common.to(calibration.dtype) if isinstance(common, nn.Module) else common


def _run(stream: ResidualStream, batch: slice, model: nn.Module, site: Site, until: Literal["x", "y"]) -> Seen:
    """Runs a batch through the current layer as far as needed to see x or y of a site."""
    with watch(model, site, until) as seen:
        stream.run(batch)
    return seen


def _retrain(
    calibration: Calibration, plan: Plan, sites: list[Site], moved: ResidualStream, dense: ResidualStream
) -> list[Replacement]:
    """Retrains a layer to give the dense stream after it, from the stream that enters it; switched on."""
    if len(sites) < len([site for site in calibration.sites if site.layer == sites[0].layer]):
        raise SubFitError(f"{sites[0].name}: a layer can only be retrained as a whole, its Attention and its FeedForward")
    if is_distributed():
        raise SubFitError(f"{sites[0].name}: a layer can only be retrained by a single process")
    bypass, layer = plan[sites[-1]], dense.layers[dense.position]
    targets = torch.empty_like(dense.hidden)
    for batch in dense.batches:
        targets[batch] = dense.run(batch)

    def run(other: nn.Module, windows: Tensor) -> Tensor:
        return moved.apply(other, windows.float())

    with torch.enable_grad(), attribute_errors_to(bypass):
        trained = bypass.fit_layer(copy.deepcopy(layer).float().requires_grad_(True), run, moved.hidden, targets)
    replacements: list[Replacement] = [Retrained(calibration.model, site, layer, trained) for site in sites]
    for replacement in replacements:
        replacement.on()
    return replacements


def _advance(stream: ResidualStream, model: nn.Module, source: Site | None = None) -> Tensor | None:
    """Moves all tokens through the current layer; returns what the branch `source` has added, if one is given."""
    if source is None:
        stream.step()
        return None
    added = torch.empty_like(stream.hidden)
    with watch(model, source) as seen:
        for batch in stream.advance():
            added[batch] = seen.y
    return added


def _merging(calibration: Calibration, plan: Plan) -> dict[Site, Site]:
    """The sites whose bypass is merged into a FeedForward before it, and that FeedForward."""
    merging = [site for site, bypass in plan.items() if bypass.reads == "previous"]
    dropped = {site for site, bypass in plan.items() if bypass.needs == "nothing"}
    return {site: last_kept_ffn(calibration.sites, dropped, site) for site in merging}


def _replacement(
    model: nn.Module, site: Site, bypass: Bypass, evidence: dict[str, Tensor], common: Any, source: Site | None = None
) -> Replacement:
    """The fitted bypass of a site; merged into the FeedForward `source`, if one is given."""
    with torch.enable_grad(), attribute_errors_to(bypass):
        module = bypass.fit(site, evidence, common)
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise SubFitError(f"{site.name}: fit must return a module, not {kind} ({where(bypass, 'fit')})")
    changes: dict[str, nn.Module] = {}
    if source is not None:
        path = output_projection(model, source)
        changes = {path: merged(model.get_submodule(path), module)}
    replacement = Replacement(model, site, module, bypass.reads, changes)
    _check_module(replacement.bypass, site, bypass)
    replacement.explained = _explained_variance(replacement.bypass, evidence, site.width)
    return replacement


def _check_module(module: nn.Module, site: Site, bypass: Bypass) -> None:
    """Raises SubFitError unless `module` maps rows of the stream's width to the same, and is finite."""
    place = where(bypass, "fit")
    parameters = list(module.parameters())
    if not all(p.isfinite().all() for p in parameters):
        raise SubFitError(f"{site.name}: the fitted bypass has NaN or infinite parameters ({place})")
    like = parameters[0] if parameters else torch.empty(0)
    with torch.no_grad(), attribute_errors_to(bypass):
        gave = module(torch.zeros(2, site.width, device=like.device, dtype=like.dtype))
    if gave.shape != (2, site.width):
        shape = tuple(gave.shape)
        raise SubFitError(f"{site.name}: the bypass maps (2, {site.width}) to {shape}; both must be the same ({place})")


def _explained_variance(module: nn.Module, sums: dict[str, Tensor], width: int) -> float | None:
    """R^2 of a bypass made of linear pieces alone, on the tokens it was fitted to; None for any other."""
    leaves = [m for m in module.modules() if not isinstance(m, nn.Sequential)]
    if not sums or not all(isinstance(leaf, nn.Linear | Scale | Constant) for leaf in leaves):
        return None
    exact = copy.deepcopy(module).to(sums["xx"].device, torch.float64)
    with torch.no_grad():
        bias = exact(torch.zeros_like(sums["x"]))
        linear_map = exact(torch.eye(width, dtype=torch.float64, device=bias.device)) - bias
    return explained_variance(sums, linear_map, bias)
