"""What bypasses are fitted from: the moments of what they read and of their targets, gathered on the dense stream."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from subfit.bypass import Bypass
from subfit.calibration.cache import Cache
from subfit.calibration.capture import Calibration
from subfit.calibration.moments import Moments
from subfit.model.processes import all_gather_rows
from subfit.model.submodules import Seen, Site

Plan = dict[Site, Bypass]


class Evidence:
    """What a bypass is fitted from: the moments of what it reads and its targets, and the pairs if it needs them."""

    def __init__(self, site: Site, bypass: Bypass):
        self._bypass = bypass
        self._width = site.width
        self._moments: Moments | None = None
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds what the bypass reads in one batch, and its targets; both (windows, tokens, d)."""
        self._moments = self._moments or Moments(self._width).to(x.device)
        self._moments.update(x, y)
        if self._bypass.needs == "pairs":
            self._pairs.append((x.flatten(0, -2).clone(), y.flatten(0, -2).to(x.dtype, copy=True)))

    def collect(self) -> dict[str, Tensor]:
        """Returns the sums of `Moments.compute`, and `inputs` and `targets` (tokens, d) where pairs are needed."""
        sums = self._moments.compute() if self._moments else {}
        if self._pairs:
            sums["inputs"], sums["targets"] = (all_gather_rows(torch.cat(part)) for part in zip(*self._pairs, strict=True))
        return sums


def gather(calibration: Calibration, plan: Plan, done: Callable[[Site, dict[str, Tensor]], None]) -> None:
    """Gives `done` what the bypass of each site of `plan` needs of the dense stream, as soon as it is complete.

    Where the calibration has a cache, the moments of all sites are gathered once, and read from there by every later fit.
    """
    cache = calibration.cache
    cached = {} if cache is None else {site: bypass for site, bypass in plan.items() if bypass.needs == "moments"}
    _watch(calibration, {site: bypass for site, bypass in plan.items() if site not in cached}, done)
    for site, bypass in cached.items():
        done(site, _cached(calibration, cache, site, bypass))


@contextmanager
def evidence_files(calibration: Calibration) -> Iterator[Cache]:
    """Yields a cache in a temporary folder: however many sites a group has, the evidence of one is in memory."""
    with TemporaryDirectory(prefix="subfit-evidence-") as folder:
        yield Cache(folder, str(calibration.device))


def read(bypass: Bypass, seen: Seen) -> Tensor:
    """Returns what a bypass reads of what passes its site."""
    return seen.h if bypass.reads == "stream" else seen.x


def _name(site: Site, bypass: Bypass) -> str:
    return f"{site.name}-{'stream' if bypass.reads == 'stream' else 'input'}"


def _cached(calibration: Calibration, cache: Cache | None, site: Site, bypass: Bypass) -> dict[str, Tensor]:
    """The moments of a site, and on the way to them those of all sites that are not in the cache."""
    assert cache is not None
    found = cache.get(_name(site, bypass))
    if found is not None:
        return found
    missing = {other: bypass for other in calibration.sites if cache.get(_name(other, bypass)) is None}
    _watch(calibration, missing, lambda other, sums: cache.put(_name(other, bypass), sums))
    return cache.load(_name(site, bypass))


def _watch(calibration: Calibration, plan: Plan, done: Callable[[Site, dict[str, Tensor]], None]) -> None:
    """As `gather`, from the model itself; sites that need nothing are not waited for."""
    evidence: dict[Site, Evidence] = {}

    def visit(site: Site, seen: Seen) -> None:
        if site not in evidence:
            evidence[site] = Evidence(site, plan[site])
        evidence[site].add(read(plan[site], seen), seen.y)

    watched = [site for site, bypass in plan.items() if bypass.needs != "nothing"]
    for site in plan:
        if site not in watched:
            done(site, {})
    calibration.watch_sites(watched, "fit", visit, lambda site: done(site, evidence.pop(site).collect()))
