"""Angles between residual streams, token by token."""

import torch
from torch import Tensor


def angles(before: Tensor, after: Tensor) -> Tensor:
    """Returns the angle between the rows of two tensors (..., d), in radians, (...); exact where it is small."""
    a, b = (torch.nn.functional.normalize(t.float(), dim=-1) for t in (before, after))
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))
