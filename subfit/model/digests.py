"""Digests of tensors, by which the same data are known again."""

import hashlib

import torch
from torch import Tensor


def tensor_bytes(tensor: Tensor) -> bytes:
    """Returns the values of a tensor of any data type as they are in memory, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1, 1).view(torch.uint8).numpy().tobytes()


def tensor_digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's values."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
