"""One substitute for each run of consecutive layers that is taken out, where the run ends."""

import copy

from subfit.bypass import Substitute
from subfit.fitting.substitutes import Assignment
from subfit.model.submodules import Site
from subfit.strategies.bypasses.identity import Identity
from subfit.strategies.bypasses.linear import Linear


class AtCut(Assignment):
    """Another bypass at the last site of each run of consecutive layers, nothing at the other sites.

    For whole layers: as the FeedForwards' bypass, with `identity` for the Attentions, fitting `sequential`, the target
    `corrected` and a correction of 1, the stream passes the run unchanged, and the inner bypass is fitted to jump from the
    stream before the cut to the stream after it (LLM-Streamline, arXiv 2403.19135; ReplaceMe, arXiv 2505.02819;
    LinearPatch, arXiv 2505.24680).

    Args:
        bypass: the inner bypass.
    """

    def __init__(self, bypass: Substitute = Linear()) -> None:
        self.bypass = bypass

    def assign(self, sites: list[Site]) -> dict[Site, Substitute]:
        layers, nothing, bypass = {site.layer for site in sites}, Identity(), copy.copy(self.bypass)
        return {site: nothing if site.layer + 1 in layers else bypass for site in sites}
