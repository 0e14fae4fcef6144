"""Hadamard matrices have orthogonal rows of 1 and -1."""

import pytest
import torch

from subfit.errors import SubFitError
from subfit.fitting.hadamard import hadamard


@pytest.mark.parametrize(
    "order", [1, 2, 4, 12, 20, 28, 36, 64, 576, 768, 896, 960, 1536, 2048, 2560, 2880, 3584, 4096, 5120]
)
def test_hadamard_matrices(order):
    h = hadamard(order)
    assert h.shape == (order, order) and h.abs().eq(1).all()
    some = torch.randint(-2, 3, (order, 8), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(h @ (h.T @ some), order * some)
    if order < 1000:
        assert torch.equal(h @ h.T, order * torch.eye(order))


@pytest.mark.parametrize("order", [0, 3, 6, 92, 577])
def test_a_hadamard_matrix_that_is_not_known_is_refused(order):
    with pytest.raises(SubFitError, match=f"no Hadamard matrix of order {order}"):
        hadamard(order)
