"""What bypasses are fitted from: statistics of features and targets, accumulated on the dense stream."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from subfit.bypass import Bypass, Statistics
from subfit.calibration.cache import Cache
from subfit.calibration.capture import Calibration
from subfit.calibration.moments import Moments, StreamingMoments
from subfit.model.activations import Activations
from subfit.model.processes import all_gather_rows
from subfit.model.submodules import Site

Done = Callable[[Site, Any], None]


@dataclass
class Pairs(Moments):
    """Moments, and the tokens that they are of.

    Attributes:
        inputs: (tokens, f), features, in the model's data type.
        targets: (tokens, d), the same.
    """

    inputs: Tensor
    targets: Tensor


class StreamingPairs(StreamingMoments):
    """Accumulates `Pairs`: for bypasses that are trained on the tokens themselves. The memory grows with their number."""

    def __init__(self, features: int, width: int):
        super().__init__(features, width)
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def update(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        super().update(x, y, weight)
        self._pairs.append((x.flatten(0, -2).clone(), y.flatten(0, -2).to(x.dtype, copy=True)))

    def compute(self) -> Pairs:
        inputs, targets = (all_gather_rows(torch.cat(part)) for part in zip(*self._pairs, strict=True))
        return Pairs(**vars(super().compute()), inputs=inputs, targets=targets)


class Collector:
    """Accumulates statistics of features and targets, of sizes that the first batch shows.

    Args:
        statistics: see `Bypass`.
    """

    def __init__(self, statistics: Statistics | None):
        self._statistics = statistics
        self._metric: Metric | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds the features (windows, tokens, f) and the targets (windows, tokens, d) of a batch."""
        assert self._statistics is not None
        if self._metric is None:
            self._metric = self._statistics(x.shape[-1], y.shape[-1]).to(x.device)
        self._metric.update(x, y)

    def compute(self) -> Any:
        """Returns what `fit` is given; None if it needs no data."""
        return None if self._metric is None else self._metric.compute()


def gather(calibration: Calibration, plan: dict[Site, Bypass], done: Done) -> None:
    """Gives `done` the statistics of each site of `plan` on the dense stream, as soon as they are complete.

    Where the calibration has a cache, the moments of all sites are gathered once, and read from there by every later fit.
    """
    cache = calibration.cache
    cached = {} if cache is None else {site: bypass for site, bypass in plan.items() if _has_common_moments(bypass)}
    _watch(calibration, {site: bypass for site, bypass in plan.items() if site not in cached}, done)
    for site, bypass in cached.items():
        assert cache is not None
        done(site, _cached(calibration, cache, site, bypass))


class StatisticsFiles:
    """Statistics kept in files: however many sites a group has, those of one are in memory.

    Args:
        cache: where.
    """

    def __init__(self, cache: Cache):
        self._cache = cache
        self._kinds: dict[Site, type] = {}

    def put(self, site: Site, statistics: Any) -> None:
        """Keeps the statistics of a site, an object with tensors as its fields."""
        self._kinds[site] = type(statistics)
        self._cache.put(site.name, dict(vars(statistics)))

    def load(self, site: Site) -> Any:
        """Returns the statistics of a site."""
        return self._kinds[site](**self._cache.load(site.name))


@contextmanager
def statistics_files(calibration: Calibration) -> Iterator[StatisticsFiles]:
    """Yields a place for statistics in a temporary folder."""
    with TemporaryDirectory(prefix="subfit-statistics-") as folder:
        yield StatisticsFiles(Cache(folder, str(calibration.device)))


def _has_common_moments(bypass: Bypass) -> bool:
    """Whether a bypass is fitted from the moments of what it reads, which it has in common with other bypasses."""
    return bypass.statistics is StreamingMoments and maps_input_to_output(bypass)


def maps_input_to_output(bypass: Bypass) -> bool:
    """Whether a bypass is regressed on what its module reads, towards what its branch gives."""
    return type(bypass).features is Bypass.features and type(bypass).targets is Bypass.targets


def _name(site: Site, bypass: Bypass) -> str:
    return f"{site.name}-{'stream' if bypass.reads == 'stream' else 'input'}"


def _cached(calibration: Calibration, cache: Cache, site: Site, bypass: Bypass) -> Moments:
    """The moments of a site, and on the way to them those of all sites that are not in the cache."""
    found = cache.get(_name(site, bypass))
    if found is None:
        missing = {other: bypass for other in calibration.sites if cache.get(_name(other, bypass)) is None}
        _watch(calibration, missing, lambda other, moments: cache.put(_name(other, bypass), dict(vars(moments))))
        found = cache.load(_name(site, bypass))
    return Moments(**found)


def _watch(calibration: Calibration, plan: dict[Site, Bypass], done: Done) -> None:
    """As `gather`, from the model itself; sites that need no data are not waited for."""
    watched = {site: bypass for site, bypass in plan.items() if bypass.statistics is not None}
    for site in plan:
        if site not in watched:
            done(site, None)
    collectors: dict[Site, Collector] = {}

    def visit(site: Site, seen: Activations) -> None:
        if site not in collectors:
            collectors[site] = Collector(watched[site].statistics)
        collectors[site].add(watched[site].features(seen), watched[site].targets(seen, seen.y))

    calibration.watch_sites(watched, "fitting", visit, lambda site: done(site, collectors.pop(site).compute()))
