"""Some of a branch's own hidden units beside a low-rank map of its input: chosen by energy, and fitted together."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from subfit.fitting.regression import Centred, factors, ridged, whitener

Prior = Literal["zero", "weights"]


@dataclass(frozen=True)
class Beside:
    """The map x A B + z_S V + b of the input x (d) and of the kept hidden units z_S (n).

    Attributes:
        a, b: (d, rank) and (rank, d).
        v: (n, d), the output weights of the kept units.
        bias: (d).
    """

    a: Tensor
    b: Tensor
    v: Tensor
    bias: Tensor


def fit_beside(c: Centred, output: Tensor, kept: Tensor, rank: int, ridge: float, prior: Prior) -> Beside:
    """Fits the output weights of kept units and a low-rank map together; see `low_rank_beside`.

    Args:
        c: of the features (x, all hidden units z) and the targets.
        output: (units, d), the branch's own output weights.
        kept: (n), the indices of the units that stay.
        rank: of the map of x; 0 for none.
        ridge: penalty on A B and on V minus its prior, relative to the mean variance of x and of z_S.
        prior: what V is drawn to: zero, or the units' own rows of `output`.
    """
    width = len(c.xx) - len(output)
    chosen = torch.cat([torch.arange(width, device=kept.device), width + kept])
    drawn_to = output[kept] if prior == "weights" else torch.zeros_like(output[kept])
    a, b, change = low_rank_beside(_without(c, width + kept, drawn_to), chosen, width, rank, ridge)
    v = drawn_to + change
    return Beside(a, b, v, c.mean_y - c.mean_x[:width] @ a @ b - c.mean_x[chosen[width:]] @ v)


def unexplained_energy(c: Centred, output: Tensor, ridge: float) -> Tensor:
    """The energy of each hidden unit that x does not explain, (units): |W_out,j|^2 times the variance of z_j without it.

    Args:
        c, output, ridge: see `fit_beside`.
    """
    width = len(c.xx) - len(output)
    xx, xz, zz = c.xx[:width, :width], c.xx[:width, width:], c.xx.diagonal()[width:]
    t = whitener(ridged(xx, ridge))
    return output.square().sum(1) * (zz - (t.T @ xz).square().sum(0))


def _without(c: Centred, inputs: Tensor, weight: Tensor) -> Centred:
    """The same features, and the targets without what some of the features give by a weight, z W."""
    return replace(c, xy=c.xy - c.xx[:, inputs] @ weight, mean_y=c.mean_y - c.mean_x[inputs] @ weight)


def low_rank_beside(c: Centred, chosen: Tensor, width: int, rank: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns A (d, rank), B (rank, d) and V (n, d) that minimise E|y - x A B - z V|^2 + penalties, over centred tokens.

    For a given A B, V is the ridge regression of what it leaves. What is then left is a quadratic form of A B in the metric
    of x without what z explains (its Schur complement), so that A B is the reduced-rank regression in this metric.

    Args:
        c: of the features (x, all z) and the targets.
        chosen: (d + n), the indices of x, and of the z to use, among the features.
        width: d.
        ridge: penalty on A B and on V, relative to the mean variance of x and of these z.
    """
    joint, xy = c.xx[chosen][:, chosen], c.xy[chosen]
    xx, xz = ridged(joint[:width, :width], ridge), joint[:width, width:]
    t_z = whitener(ridged(joint[width:, width:], ridge)) if len(chosen) > width else xz.new_zeros(0, 0)
    explained = xz @ t_z
    t = whitener(xx - explained @ explained.T)
    left = t.T @ (xy[:width] - explained @ (t_z.T @ xy[width:]))
    a, b = factors(t, left, rank) if rank else (t[:, :0], left[:0])
    return a, b, t_z @ (t_z.T @ (xy[width:] - xz.T @ (a @ b)))
