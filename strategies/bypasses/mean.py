"""The mean of what the branch added, in its place."""

import torch
from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.model.activations import Branch
from subfit.model.modeling_subfit import Constant
from subfit.model.submodules import Site


class Mean(Bypass):
    """b, the same for every token: the mean of the targets, which is the best fit that reads nothing."""

    reads = "nothing"

    def parameters(self, sites: list[Site]) -> int:
        return sum(site.width for site in sites)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        module = Constant(branch.site.width).to(moments.y.device)
        with torch.no_grad():
            module.bias.copy_(moments.y / moments.n)
        return module
