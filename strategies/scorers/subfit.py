"""The score of SubFit: how much a site turns and stretches the residual stream."""

import torch
from torch import Tensor

from subfit.scorer import Scorer


class SubFit(Scorer):
    """rotation * magnitude: placeholder until the robust statistic is chosen."""

    tokens: Tensor
    rotation: Tensor
    magnitude: Tensor

    def __init__(self):
        super().__init__()
        for name in ("tokens", "rotation", "magnitude"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        h, y = h.float(), y.float()
        cosine = torch.cosine_similarity(h, h + y, dim=-1).clamp(-1, 1)
        self.tokens += cosine.numel()
        self.rotation += (cosine.arccos() / torch.pi).sum()
        self.magnitude += (y.norm(dim=-1) / h.norm(dim=-1)).sum()

    def compute(self) -> Tensor:
        return self.rotation * self.magnitude / self.tokens**2
