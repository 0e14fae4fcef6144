"""Fits the bypasses of the selected sites, from the dense stream at once or in depth order on the compressed one."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from subfit.bypass import Bypass
from subfit.calibration import Calibration
from subfit.errors import SubFitError
from subfit.moments import Moments
from subfit.regression import explained_variance
from subfit.replace import Replacement, switched_off
from subfit.sites import Seen, Site, watch
from subfit.stream import ResidualStream

Target = Literal["branch", "dense", "corrected"]
Plan = dict[Site, Bypass]


def fit_one_shot(calibration: Calibration, plan: Plan) -> list[Replacement]:
    """Fits every bypass to what its branch adds in the dense model, in one pass; returns them switched off."""
    fitted: dict[Site, Replacement] = {}

    def fit(site: Site, sums: dict[str, Tensor], common: Any = None) -> None:
        fitted[site] = _replacement(calibration.model, site, plan[site], sums, common)

    with _MomentFiles(calibration) as files:
        grouped = {site for site, bypass in plan.items() if bypass.needs_group()}
        gather_moments(calibration, plan, lambda site, sums: (files.put if site in grouped else fit)(site, sums))
        for bypass, sites in _groups(plan).items():
            common = _common_part(calibration, bypass, sites, files)
            for site in sites:
                fit(site, files.get(site), common)
    return [fitted[site] for site in plan]


@torch.no_grad()
def fit_sequential(calibration: Calibration, plan: Plan, target: Target, correction: float = 1.0) -> list[Replacement]:
    """Fits the bypasses in depth order, each on the stream as the earlier ones have changed it; returns them switched on.

    Two streams advance side by side: h through the dense layers, and h^ through those already replaced. A bypass reads h^
    (or its norm) and is fitted to `target`: "branch", what the branch would add to h^; "dense", what it adds to h, y; or
    "corrected", y + correction * (h - h^), which pulls the compressed stream back onto the dense one (the idea of GPTAQ's
    asymmetric calibration, arXiv 2504.02692). What a group has in common is learned beforehand, on the dense stream.
    """
    common = _common_parts(calibration, plan)
    fitted: dict[Site, Replacement] = {}
    dense = calibration.stream()
    moved = dense
    for layer in tqdm(range(len(dense.layers)), desc="fit", unit="layer"):
        sites = [site for site in plan if site.layer == layer]
        if sites and moved is dense:
            moved = dense.fork()
        here: list[Replacement] = []
        for site in sites:
            moments = Moments(site.width).to(calibration.device)
            corrects = target == "corrected" and not (site.shares_norm and here)  # parallel branches: correct once
            for batch in dense.batches if plan[site].reads != "nothing" else ():
                seen = _run(moved, batch, calibration.model, site, "y" if target == "branch" else "x")
                if target == "branch":
                    y = seen.y
                else:
                    with switched_off(here):
                        kept = _run(dense, batch, calibration.model, site, "y")
                    y = kept.y.float()
                    if corrects:
                        y = y + correction * (kept.h.float() - seen.h.float())
                moments.update(_read(plan[site], seen), y)
            sums = moments.compute() if plan[site].reads != "nothing" else {}
            fitted[site] = _replacement(calibration.model, site, plan[site], sums, common.get(plan[site]))
            fitted[site].on()
            here.append(fitted[site])
        if layer == max((site.layer for site in plan), default=-1):
            break
        if moved is not dense:
            for _ in moved.advance():
                pass
        with switched_off(here):
            for _ in dense.advance():
                pass
    return [fitted[site] for site in plan]


def gather_moments(calibration: Calibration, plan: Plan, done: Callable[[Site, dict[str, Tensor]], None]) -> None:
    """Gives `done` the moments of each site of `plan` on the dense stream, as soon as they are complete."""
    moments: dict[Site, Moments] = {}

    def visit(site: Site, seen: Seen) -> None:
        if plan[site].reads != "nothing":
            if site not in moments:
                moments[site] = Moments(site.width).to(calibration.device)
            moments[site].update(_read(plan[site], seen), seen.y)

    def finish(site: Site) -> None:
        done(site, moments.pop(site).compute() if site in moments else {})

    calibration.watch_sites(plan, "fit", visit, finish)


class _MomentFiles:
    """The moments of a group's sites, on disk: however many there are, one site's are in memory."""

    def __init__(self, calibration: Calibration):
        self._device = str(calibration.device)

    def __enter__(self) -> "_MomentFiles":
        self._folder = tempfile.TemporaryDirectory(prefix="subfit-moments-")
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def put(self, site: Site, sums: dict[str, Tensor]) -> None:
        try:
            save_file({name: value.contiguous() for name, value in sums.items()}, self._path(site))
        except (OSError, SafetensorError) as error:
            raise SubFitError(f"cannot keep moments in the folder for temporary files: {error}") from error

    def get(self, site: Site) -> dict[str, Tensor]:
        return load_file(self._path(site), device=self._device)

    def _path(self, site: Site) -> Path:
        return Path(self._folder.name) / f"{site.name}.safetensors"


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
    with _MomentFiles(calibration) as files:
        gather_moments(calibration, {site: plan[site] for site in plan if plan[site] in groups}, files.put)
        return {bypass: _common_part(calibration, bypass, sites, files) for bypass, sites in groups.items()}


def _common_part(calibration: Calibration, bypass: Bypass, sites: list[Site], files: "_MomentFiles") -> Any:
    """What a group of sites has in common; a module is rounded to the model's data type before anything is fitted to it."""
    common = bypass.fit_group(sites, map(files.get, sites))
    return common.to(calibration.dtype) if isinstance(common, nn.Module) else common


def _run(stream: ResidualStream, batch: slice, model: nn.Module, site: Site, until: Literal["x", "y"]) -> Seen:
    """Runs a batch through the current layer as far as needed to see x or y of a site."""
    with watch(model, site, until) as seen:
        stream.run(batch)
    return seen


def _read(bypass: Bypass, seen: Seen) -> Tensor:
    return seen.h if bypass.reads == "stream" else seen.x


def _replacement(model: nn.Module, site: Site, bypass: Bypass, sums: dict[str, Tensor], common: Any) -> Replacement:
    module = bypass.fit(site, sums, common)
    return Replacement(model, site, module, bypass.reads, _explained_variance(module, sums, site.width))


def _explained_variance(module: nn.Module, sums: dict[str, Tensor], width: int) -> float | None:
    """R^2 of a bypass made of linear layers alone, on the tokens it was fitted to; None for any other."""
    leaves = [m for m in module.modules() if not isinstance(m, nn.Sequential)]
    if not sums or not all(isinstance(leaf, nn.Linear) for leaf in leaves):
        return None
    exact = copy.deepcopy(module).to(sums["xx"].device, torch.float64)
    with torch.no_grad():
        bias = exact(torch.zeros_like(sums["x"]))
        linear_map = exact(torch.eye(width, dtype=torch.float64, device=bias.device)) - bias
    return explained_variance(sums, linear_map, bias)
