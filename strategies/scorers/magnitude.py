"""How much a site puts on the residual stream."""

import torch
from torch import Tensor

from subfit.scorer import TokenMean


class Magnitude(TokenMean):
    """Mean size of what a site adds, relative to the stream, SubFit's second ingredient (arXiv 2606.02559).

        score = mean over tokens of  |y| / |h|

    A token whose stream is zero counts as 0.
    """

    def each(self, h: Tensor, y: Tensor) -> Tensor:
        before, added = h.norm(dim=-1), y.norm(dim=-1)
        return torch.where(before > 0, added / before, 0)
