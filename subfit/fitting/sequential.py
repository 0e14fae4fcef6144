"""Fits the bypasses of the selected sites in depth order, on the stream as the earlier ones have changed it."""

import copy
import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subfit.calibration.capture import Calibration
from subfit.calibration.moments import StreamingMoments
from subfit.errors import SubFitError, attribute_errors_to
from subfit.fitting.kept import may_be_refitted, refit_kept
from subfit.fitting.layers import before_output_norm, output_norm_of
from subfit.fitting.one_shot import shared_parts
from subfit.fitting.replacements import fit_bypass, fit_folded_map
from subfit.fitting.statistics import Collector
from subfit.fitting.substitutes import FoldedMap, Plan, RetrainedLayer
from subfit.model.activations import Activations, watch
from subfit.model.folding import last_kept_ffn
from subfit.model.offloading import check_resident, loaded
from subfit.model.processes import is_distributed
from subfit.model.replacing import Replacement, RetrainedReplacement, Switch, switched_off
from subfit.model.residual_stream import ResidualStream
from subfit.model.submodules import Site, decoder_layers
from subfit.progress import Stage

logger = logging.getLogger(__name__)
Target = Literal["branch", "dense", "corrected"]


@torch.no_grad()
def fit_sequential(
    calibration: Calibration, plan: Plan, target: Target, correction: float = 1.0, refit_kept: float | None = None
) -> list[Switch]:
    """Fits the bypasses in depth order, each on the stream as the earlier ones have changed it; returns them switched on.

    Two streams advance side by side: h through the dense layers, and h^ through those already replaced. A bypass reads h^
    (or its norm) and is fitted to `target`: "branch", what the branch would add to h^; "dense", what it adds to h, y; or
    "corrected", y + correction * (h - h^) / coefficient, which pulls the compressed stream back onto the dense one (the idea
    of GPTAQ's asymmetric calibration, arXiv 2504.02692). What a group has in common is learned before, on the dense stream.

    Args:
        refit_kept: the ridge with which the output projections of the kept submodules behind the first replaced one are
            refitted, too, to the same target, where they end in one; they stay as they are if it is not given.
    """
    if refit_kept is not None and not any(may_be_refitted(calibration.branch(site)) for site in calibration.sites):
        logger.warning("refit_kept: no submodule of this model ends in a linear layer; nothing is refitted")
    fit = _SequentialFit(calibration, plan, target, correction, refit_kept)
    last = max((site.layer for site in (plan if refit_kept is None or not plan else calibration.sites)), default=-1)
    with Stage(f"fitting {len(plan)} bypasses", last + 1, "layers") as progress:
        _, layers = decoder_layers(calibration.model)
        for layer in range(last + 1):
            with loaded(layers[layer]):
                fit.fit_layer(layer)
                if layer < last:
                    fit.advance(layer)
            progress.advance()
    return fit.fitted


class _SequentialFit:
    """The two streams, and what was fitted so far.

    Attributes:
        fitted: the replacements and the refitted projections in the order of the stream, switched on.
    """

    def __init__(self, calibration: Calibration, plan: Plan, target: Target, correction: float, refit_kept: float | None):
        self._refit_kept = refit_kept
        self._calibration, self._plan, self._target, self._correction = calibration, plan, target, correction
        self._shared = shared_parts(calibration, plan)
        self._sources = _sources_of_folded_maps(calibration, plan)
        self._source_added = torch.empty(0)  # what the FeedForward has added that a later map is folded into
        self._dense = self._compressed = calibration.stream()
        self._here: list[Switch] = []  # in the current layer
        self._stages: set[int] = set()  # of the current layer's sites that were fitted
        self._last: Site | None = None  # site of the current layer that is fitted, as which is, the dense stream moves
        self._moving: Iterator[slice] | None = None  # the dense stream, through the current layer
        self.fitted: list[Switch] = []

    def fit_layer(self, layer: int) -> None:
        """Fits and replaces the sites of the current layer that are in the plan; refits the others, if asked to."""
        sites = [site for site in self._plan if site.layer == layer]
        if sites and self._compressed is self._dense:
            self._compressed = self._dense.fork()
        self._here, self._stages = [], set()
        retrained = [site for site in sites if isinstance(self._plan[site], RetrainedLayer)]
        if retrained:
            self._retrain(retrained)
        fitted = [
            site
            for site in self._calibration.sites
            if site.layer == layer and site not in retrained and (site in self._plan or self._is_refitted(site))
        ]
        self._last = fitted[-1] if fitted else None
        for site in fitted:
            if site in self._plan:
                self._replace(site)
            else:
                self._refit(site)

    def advance(self, layer: int) -> None:
        """Moves both streams through the current layer, the dense one unless it has been."""
        source = next((source for source in self._sources.values() if source.layer == layer), None)
        if source is None:
            self._compressed.step()
        else:
            self._source_added = _step_and_keep(self._compressed, self._calibration.model, source)
        if self._moving is not None:
            next(self._moving, None)
            self._moving = None
        elif self._compressed is not self._dense:
            with switched_off(self._here):
                self._dense.step()

    def _is_refitted(self, site: Site) -> bool:
        """Whether the output projection of a kept site is refitted: behind the first replaced one."""
        changed = self._compressed is not self._dense
        return self._refit_kept is not None and changed and may_be_refitted(self._calibration.branch(site))

    def _replace(self, site: Site) -> None:
        substitute, branch = self._plan[site], self._calibration.branch(site)
        replacement: Replacement
        if isinstance(substitute, FoldedMap):
            statistics = self._statistics(site, substitute)
            replacement, change = fit_folded_map(branch, substitute, statistics, self._sources[site])
            for batch in self._compressed.batches:
                self._compressed.hidden[batch] += change(self._source_added[batch])
        else:
            assert not isinstance(substitute, RetrainedLayer)
            statistics = self._statistics(site, substitute)
            replacement = fit_bypass(branch, substitute, statistics, self._shared.get(substitute))
        self._put(replacement)
        self._stages.add(site.stage)

    def _refit(self, site: Site) -> None:
        """Refits the output projection of a kept site to what it should add to the compressed stream."""
        assert self._refit_kept is not None
        branch, collector = self._calibration.branch(site), Collector(StreamingMoments)
        norm = output_norm_of(branch)
        for batch in self._dense.batches:
            seen = self._run(self._compressed, batch, site, "y")
            gave, target = seen.y.float(), self._target_of(site, batch, seen)
            if norm is not None:
                gave = seen.before_norm.float()
                target = before_output_norm(norm, gave, target)
            collector.add(seen.hidden, target - gave)
        self._put(refit_kept(branch, collector.compute(), self._refit_kept))
        self._stages.add(site.stage)

    def _put(self, switch: Switch) -> None:
        switch.on()
        self.fitted.append(switch)
        self._here.append(switch)

    def _statistics(self, site: Site, substitute: Any) -> Any:
        """The statistics of the features on the compressed stream, and of the targets."""
        collector = Collector(substitute.statistics)
        for batch in self._dense.batches if substitute.statistics is not None else ():
            seen = self._run(self._compressed, batch, site, "y" if self._target == "branch" else "x")
            y = self._target_of(site, batch, seen)
            if isinstance(substitute, FoldedMap):
                collector.add(self._source_added[batch], y)
            else:
                collector.add(substitute.features(seen), substitute.targets(seen, y))
        return collector.compute()

    def _target_of(self, site: Site, batch: slice, seen: Activations) -> Tensor:
        """What is to be added to the compressed stream at a site, given what was seen of it there."""
        if self._target == "branch":
            return seen.y
        dense = self._dense_at(site, batch)
        if self._target != "corrected" or site.stage in self._stages:  # of parallel branches, the first corrects
            return dense.y.float()
        return dense.y.float() + self._correction / site.coefficient * (dense.h.float() - seen.h.float())

    def _dense_at(self, site: Site, batch: slice) -> Activations:
        """What passes a site of the dense model; at the last site of a layer, the dense stream moves on with it."""
        with switched_off(self._here):
            if site is not self._last:
                return self._run(self._dense, batch, site, "y")
            if self._moving is None:
                self._moving = self._dense.advance()
            with watch(self._calibration.model, site) as seen:
                moved = next(self._moving)
        assert moved == batch  # all batches are gone through once, in order
        return seen

    def _run(self, stream: ResidualStream, batch: slice, site: Site, until: Literal["x", "y"]) -> Activations:
        """Runs a batch through the current layer as far as needed to see x or y of a site."""
        with watch(self._calibration.model, site, until) as seen:
            stream.run(batch)
        return seen

    def _retrain(self, sites: list[Site]) -> None:
        """Retrains the current layer to give the dense stream after it, from the stream that enters it."""
        layer, compressed = self._dense.layers[self._dense.position], self._compressed
        substitute = self._plan[sites[-1]]
        assert isinstance(substitute, RetrainedLayer)
        _check_retrainable(self._calibration, sites)
        targets = torch.empty_like(self._dense.hidden)
        for batch in self._dense.batches:
            targets[batch] = self._dense.run(batch)

        def run(other: nn.Module, windows: Tensor) -> Tensor:
            return compressed.apply(other, windows.float())

        with torch.enable_grad(), attribute_errors_to(substitute):
            trained = substitute.fit(copy.deepcopy(layer).float().requires_grad_(True), run, compressed.hidden, targets)
        for replacement in [RetrainedReplacement(self._calibration.model, site, layer, trained) for site in sites]:
            self._put(replacement)


def _step_and_keep(stream: ResidualStream, model: nn.Module, source: Site) -> Tensor:
    """Moves a stream through the current layer; returns what a site of it has added, (windows, length, d)."""
    added = torch.empty_like(stream.hidden)
    with watch(model, source) as seen:
        for batch in stream.advance():
            added[batch] = seen.y
    return added


def _check_retrainable(calibration: Calibration, sites: list[Site]) -> None:
    """Raises SubFitError unless these are all sites of a layer, and this is the only process."""
    if len(sites) < len([site for site in calibration.sites if site.layer == sites[0].layer]):
        raise SubFitError(f"{sites[0].name}: a layer can only be retrained as a whole, its Attention and its FeedForward")
    if is_distributed():
        raise SubFitError(f"{sites[0].name}: a layer can only be retrained by a single process")
    check_resident(calibration.model, f"{sites[0].name}: retraining a layer")


def _sources_of_folded_maps(calibration: Calibration, plan: Plan) -> dict[Site, Site]:
    """The sites with a folded map, and the kept FeedForward that it is folded into."""
    dropped = {site for site, its in plan.items() if not isinstance(its, RetrainedLayer) and its.statistics is None}
    return {
        site: last_kept_ffn(calibration.sites, dropped, site) for site, its in plan.items() if isinstance(its, FoldedMap)
    }
