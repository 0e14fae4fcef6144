"""Nothing in the place of the branch."""

from torch import nn

from subfit.bypass import Bypass
from subfit.model.modeling_subfit import Zero


class Identity(Bypass):
    """Adds nothing: the residual stream passes the site as it is (LLM-Drop, arXiv 2406.15786)."""

    reads = "nothing"
    needs = "nothing"

    def parameters(self, sites) -> int:
        return 0

    def fit(self, site, moments, common) -> nn.Module:
        return Zero()
