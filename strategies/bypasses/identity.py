"""Nothing in the place of the branch."""

from torch import nn

from subfit.bypass import Bypass
from subfit.model.activations import Branch
from subfit.model.modeling_subfit import Zero
from subfit.model.submodules import Site


class Identity(Bypass):
    """Adds nothing: the residual stream passes the site as it is (LLM-Drop, arXiv 2406.15786)."""

    reads = "nothing"
    statistics = None

    def parameters(self, sites: list[Site]) -> int:
        return 0

    def fit(self, branch: Branch, statistics: None, shared: None) -> nn.Module:
        return Zero()
