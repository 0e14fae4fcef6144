"""Digests are those of the values in memory, whatever the data type."""

import hashlib

import numpy as np
import pytest
import torch

from subfit.model.digests import tensor_bytes, tensor_digest


def test_of_any_type_and_layout():
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert tensor_bytes(torch.from_numpy(values)) == values.tobytes()
    assert tensor_bytes(torch.from_numpy(values).T) == values.T.tobytes()
    assert tensor_digest(torch.from_numpy(values)) == hashlib.sha256(values.tobytes()).hexdigest()
    assert tensor_bytes(torch.tensor(1.0)) == np.float32(1).tobytes() and tensor_bytes(torch.zeros(0, 4)) == b""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float64])
def test_one_bit_makes_another_digest(dtype):
    one, other = torch.zeros(8).to(dtype), torch.zeros(8).to(dtype)
    assert tensor_digest(one) == tensor_digest(other)
    other[7] = 1
    assert tensor_digest(one) != tensor_digest(other)
