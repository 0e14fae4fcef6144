"""One bypass for each run of consecutive layers that is taken out, where the run ends."""

from typing import Any

from subfit.strategies.bypasses.identity import Identity

from subfit import registry
from subfit.bypass import Bypass
from subfit.errors import SubFitError


class AtCut(Bypass):
    """Another bypass at the last site of each run of consecutive layers, nothing at the other sites.

    For whole layers: as the FeedForwards' bypass, with `identity` for the Attentions, fitting `sequential`, the target
    `corrected` and a correction of 1, the stream passes the run unchanged, and the inner bypass is fitted to jump from the
    stream before the cut to the stream after it (LLM-Streamline, arXiv 2403.19135; ReplaceMe, arXiv 2505.02819;
    LinearPatch, arXiv 2505.24680).

    Args:
        bypass: the inner bypass, by name or with `class_path` and `init_args`.
    """

    def __init__(self, bypass: str | dict[str, Any] = "linear"):
        registry.make("bypasses", bypass)  # its options are checked now
        self.bypass = bypass

    def assign(self, sites) -> dict:
        dropped = dict[Any, Bypass].fromkeys(sites, Identity())
        return dropped | registry.make("bypasses", self.bypass).assign(self._ends(sites))

    def parameters(self, sites) -> int:
        return registry.make("bypasses", self.bypass).parameters(self._ends(sites))

    def fit(self, site, moments, common):
        raise SubFitError("at_cut stands for other bypasses and is not fitted itself; a single bypass is needed here")

    def _ends(self, sites) -> list:
        layers = {site.layer for site in sites}
        return [site for site in sites if site.layer + 1 not in layers]
