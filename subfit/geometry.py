"""What a site does to the residual stream, token by token."""

from abc import abstractmethod

import torch
from torch import Tensor

from subfit.scorer import StreamScorer


def angles(before: Tensor, after: Tensor) -> Tensor:
    """Returns the angle between the rows of two tensors (..., d), in radians, (...); exact where it is small."""
    a, b = (torch.nn.functional.normalize(t.float(), dim=-1) for t in (before, after))
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


class TokenMean(StreamScorer):
    """A score that is a mean over tokens."""

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "tokens"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def each(self, h: Tensor, y: Tensor) -> Tensor:
        """Returns the value of each token, (windows, tokens), from the stream and what was added, both in float32."""

    def update(self, h: Tensor, x: Tensor, y: Tensor) -> None:
        values = self.each(h.float(), y.float())
        self.total += values.sum(dtype=torch.float64)
        self.tokens += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.tokens
