"""LinearPatch: a change of scale in a rotated basis, at the cut where layers were taken out."""

import torch
from torch import nn

from subfit.bypass import Bypass
from subfit.fitting.hadamard import hadamard
from subfit.fitting.layers import linear_layer
from subfit.fitting.statistics import Pairs, StreamingPairs
from subfit.model.activations import Branch
from subfit.model.submodules import Site

CHUNK = 4096  # tokens rotated at once


class LinearPatch(Bypass):
    """x (P - I), P = H diag(s) H^T, which turns the stream x before the cut into x P (LinearPatch, arXiv 2505.24680).

    H is an orthogonal Hadamard matrix, which spreads massive activations over all dimensions, and s_k the ratio of the mean
    absolute values after and before the cut in the rotated dimension k; 1 where there is nothing before. Use it through
    `at_cut`. The paper's optional distillation of P is not part of it.
    """

    reads = "stream"
    statistics = StreamingPairs

    def parameters(self, sites: list[Site]) -> int:
        return sum(site.width**2 for site in sites)

    def fit(self, branch: Branch, pairs: Pairs, shared: None) -> nn.Module:
        rotation = hadamard(branch.site.width).to(pairs.inputs.device).double() / branch.site.width**0.5
        before, after = torch.zeros_like(rotation[0]), torch.zeros_like(rotation[0])
        for x, y in zip(torch.split(pairs.inputs, CHUNK), torch.split(pairs.targets, CHUNK), strict=True):
            before += (x.double() @ rotation).abs().sum(0)
            after += ((x.double() + y.double()) @ rotation).abs().sum(0)
        change = torch.where(before > 0, (after - before) / before, 0.0)  # s - 1
        return linear_layer(rotation * change @ rotation.T)
