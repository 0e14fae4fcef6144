"""Substitutes other than a `Bypass`, and the plan: which substitute each selected site gets."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from subfit.bypass import Bypass, Statistics, Substitute
from subfit.calibration.moments import StreamingMoments
from subfit.model.activations import Branch
from subfit.model.submodules import Kind, Site

S = TypeVar("S", bound=Substitute)
Run = Callable[[nn.Module, Tensor], Tensor]


class FoldedMap(Substitute):
    """A linear map of what the last kept FeedForward before the site adds, folded into its output projection.

    Nothing is left at the site, and nothing is added to the model. It needs a sequential fit.

    Attributes:
        statistics: see `Bypass`; the features are what that FeedForward adds.
    """

    statistics: Statistics = StreamingMoments

    def parameters(self, sites: list[Site]) -> int:
        return 0

    @abstractmethod
    def fit(self, branch: Branch, statistics: Any) -> nn.Linear:
        """Returns the map W without bias, (d, d): where the FeedForward has added y, it will add y + y W."""


class RetrainedLayer(Substitute):
    """The whole decoder layer of the site with other weights: it keeps its structure, its size and its key-value cache.

    It needs a sequential fit, and both sites of the layer.
    """

    def parameters(self, sites: list[Site]) -> int:
        return sum(site.parameters for site in sites)

    def cache_shares(self, sites: list[Site]) -> dict[Site, float]:
        return dict.fromkeys(sites, 1.0)

    @abstractmethod
    def fit(self, layer: nn.Module, run: Run, inputs: Tensor, targets: Tensor) -> nn.Module:
        """Returns the layer with other weights.

        Args:
            layer: a copy of the dense layer, in float32.
            run: runs a layer on some windows (windows, length, d), at most a batch, with the mask and positions they need.
            inputs: (windows, length, d), the stream that enters the layer in the compressed model.
            targets: (windows, length, d), the stream that leaves it in the dense model.
        """


class Assignment(Substitute):
    """Different substitutes for different sites. Those that get the same object are one group, which may share a basis."""

    @abstractmethod
    def assign(self, sites: list[Site]) -> dict[Site, Substitute]:
        """Returns what takes the place of each of the selected sites."""

    def parameters(self, sites: list[Site]) -> int:
        return sum(substitute.parameters(group) for substitute, group in groups_of(self.assign(sites)).items())

    def cache_shares(self, sites: list[Site]) -> dict[Site, float]:
        groups = groups_of(self.assign(sites)).items()
        return {site: share for its, group in groups for site, share in its.cache_shares(group).items()}


Plan = dict[Site, Bypass | FoldedMap | RetrainedLayer]


def plan_of(sites: Iterable[Site], substitutes: Mapping[Kind, Substitute]) -> Plan:
    """Returns what takes the place of each site, in the order of the sites; one object for both kinds is one group.

    Args:
        sites: the sites, or a mapping from each to a substitute of its own, which then takes its place.
        substitutes: of the sites of each kind that have none of their own.
    """
    own: Mapping[Site, Substitute] = sites if isinstance(sites, Mapping) else {}
    sites = list(sites)
    given = {site: own.get(site, substitutes[site.kind]) for site in sites}
    assigned = {site: its for substitute, group in groups_of(given).items() for site, its in _assigned(substitute, group)}
    return {site: assigned[site] for site in sites}


def groups_of(assigned: Mapping[Site, S]) -> dict[S, list[Site]]:
    """Returns the sites of each substitute."""
    groups: dict[S, list[Site]] = {}
    for site, substitute in assigned.items():
        groups.setdefault(substitute, []).append(site)
    return groups


def _assigned(substitute: Substitute, sites: list[Site]) -> Iterable[tuple[Site, Any]]:
    """The sites with their substitutes, none of which is an assignment any more."""
    if not isinstance(substitute, Assignment):
        return [(site, substitute) for site in sites]
    inner = groups_of(substitute.assign(sites)).items()
    return [pair for its, group in inner for pair in _assigned(its, group)]
