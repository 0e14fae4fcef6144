"""Hadamard matrices: square, of entries 1 and -1, with orthogonal rows."""

import math

import torch
from torch import Tensor

from subfit.errors import SubFitError


def hadamard(order: int) -> Tensor:
    """Returns a Hadamard matrix H (order, order), H H^T = order * I.

    It is the Kronecker product of Sylvester's matrix of order 2^k, for the largest k possible, with one of order 1 or one of
    Paley's (1933): of order q + 1 for a prime q = 3 mod 4, or 2 (q + 1) for a prime q = 1 mod 4.

    Raises:
        SubFitError: if there is none of this form.
    """
    doublings = (order & -order).bit_length() - 1 if order > 0 else -1
    for k in range(doublings, -1, -1):
        base = _paley(order >> k)
        if base is not None:
            for _ in range(k):
                base = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), base)
            return base
    raise SubFitError(
        f"no Hadamard matrix of order {order} is known here; it must be 2^k times 1, q + 1 or 2 (q' + 1) "
        "with a prime q = 3 mod 4 or q' = 1 mod 4"
    )


def _paley(order: int) -> Tensor | None:
    """The Hadamard matrix of order 1, or one of Paley's; None if there is none of this order."""
    if order == 1:
        return torch.ones(1, 1)
    if order % 4:
        return None
    for q, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if q % 4 == remainder and _is_prime(q):
            squares = torch.full((q,), -1.0)
            squares[torch.arange(1, q).square() % q] = 1.0
            squares[0] = 0.0
            residues = squares[(torch.arange(q)[:, None] - torch.arange(q)) % q]
            core = torch.ones(q + 1, q + 1)
            core[0, 0], core[1:, 1:] = 0.0, residues
            if remainder == 3:
                core[1:, 0] = -1.0
                return core + torch.eye(q + 1)
            pairs = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
            return torch.kron(core, pairs[0]) + torch.kron(torch.eye(q + 1), pairs[1])
    return None


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, math.isqrt(q) + 1))
