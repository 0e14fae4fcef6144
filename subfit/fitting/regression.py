"""Closed-form regression from moments: full, reduced-rank and shared-basis least squares with a relative ridge.

Tokens are rows, so a map is applied as x W + b. All functions work in float64 on centred moments.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subfit.calibration.moments import Moments
from subfit.errors import SubFitError

ROUNDING = 1e-12  # centring leaves less than this share of a constant's mean square


@dataclass(frozen=True)
class Centred:
    """Means and covariances of features, the inputs of a regression, and targets.

    Attributes:
        mean_x: (f).  mean_y: (d).
        xx: (f, f), the covariance of the inputs.  xy: (f, d), the covariance of inputs with targets.
        yy: the total variance of the targets, a sum over dimensions; 0 if they are constant, to the precision of their sums.
    """

    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


def centre(moments: Moments) -> Centred:
    """Turns sums into means and covariances."""
    moments = _of_one_feature(moments)
    n, x, y = moments.n, moments.x / moments.n, moments.y / moments.n
    square = moments.yy / n
    variance = square - y @ y
    return Centred(
        mean_x=x,
        mean_y=y,
        xx=moments.xx / n - torch.outer(x, x),
        xy=moments.xy / n - torch.outer(x, y),
        yy=torch.where(variance > ROUNDING * square, variance, 0.0),
    )


def _of_one_feature(moments: Moments) -> Moments:
    """The moments with the dimensions that torchmetrics takes from a tensor of a single element."""
    features = len(moments.xy)
    return replace(moments, x=moments.x.reshape(features), xx=moments.xx.reshape(features, features))


def ridged(xx: Tensor, ridge: float) -> Tensor:
    """Adds `ridge` times the mean variance of the inputs to the diagonal of their covariance (d, d).

    Raises:
        SubFitError: if the ridge is negative.
    """
    return xx + _penalty(xx, ridge) * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)


def towards(c: Centred, prior: Tensor, ridge: float) -> Centred:
    """Returns what makes `least_squares` and `reduced_rank`, with the same ridge, penalise W - prior instead of W.

    penalty * |W - prior|^2 is penalty * |W|^2 - 2 penalty * <W, prior> and a constant: in the metric of the ridged inputs,
    it adds penalty * prior to the covariance of inputs with targets. A ridge of 0 leaves nothing of the prior.

    Args:
        prior: (f, d).

    Raises:
        SubFitError: if the ridge is negative.
    """
    return replace(c, xy=c.xy + _penalty(c.xx, ridge) * prior)


def _penalty(xx: Tensor, ridge: float) -> Tensor:
    """The factor of |W|^2 in the loss, ()."""
    check_ridge(ridge)
    return ridge * xx.diagonal().mean()


def check_ridge(ridge: float) -> None:
    """Raises SubFitError if a ridge is negative, or no number."""
    if not ridge >= 0:
        raise SubFitError(f"ridge is {ridge}; it must not be negative")


def whitener(xx: Tensor) -> Tensor:
    """Returns T (d, k) with T^T xx T = I, k = rank of xx; so T T^T is the (pseudo-)inverse of xx.

    T is the inverse transpose of the Cholesky factor. Where xx is singular to working precision (fewer tokens than
    dimensions, constant features, and no ridge) it is made of the eigenvectors with positive eigenvalues, which gives the
    least-squares solution of smallest norm.
    """
    scale = xx.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # features of any size are equally well conditioned
    correlation = xx / torch.outer(scale, scale)
    factor, failed = torch.linalg.cholesky_ex(correlation)
    if not failed and factor.diagonal().min() > 1e-6:
        identity = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        return torch.linalg.solve_triangular(factor, identity, upper=False).T / scale[:, None]
    values, vectors = torch.linalg.eigh(xx)
    keep = values > values.max().clamp_min(0) * len(xx) * torch.finfo(xx.dtype).eps * 16
    return vectors[:, keep] / values[keep].sqrt()


def least_squares(c: Centred, ridge: float) -> Tensor:
    """Returns W (d, d) that minimises E|y - x W|^2 + penalty over centred inputs and targets."""
    t = whitener(ridged(c.xx, ridge))
    return t @ (t.T @ c.xy)


def reduced_rank(c: Centred, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Returns A (d, rank) and B (rank, d) such that W = A B minimises the ridged squared error among maps of that rank.

    Reduced-rank regression (Izenman 1975): truncation in the metric of the inputs, not of W itself.
    """
    t = whitener(ridged(c.xx, ridge))
    return factors(t, t.T @ c.xy, rank)


def factors(t: Tensor, whitened: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Splits the map t @ whitened into its best factors of at most `rank`; directions that it does not have are zeros.

    The leading right singular vectors are eigenvectors of the Gram matrix, which costs a quarter of a singular value
    decomposition. The loss of what is kept is exact to working precision, as it is flat around the best subspace.
    """
    vectors = torch.linalg.eigh(whitened.T @ whitened).eigenvectors.flip(1)[:, :rank]
    inner = whitened @ vectors
    sizes = inner.norm(dim=0)
    there = sizes > 1e-8 * sizes.max()  # smaller ones are the rounding of the Gram matrix
    return t @ inner * there, vectors.T * there[:, None]


def shared_basis(sites: Iterable[Centred], rank: int, ridge: float) -> Tensor:
    """Returns A (d, rank), the input basis from which the targets of all `sites` are best predicted together.

    It spans the leading left singular vectors of [T^T D_1 / s_1 | T^T D_2 / s_2 | ...], D_i = cov(x_i, y_i), with one common
    T that whitens the mean covariance of the inputs, and s_i^2 the variance of y_i: every site counts by the share of its
    own variance that is explained. Only sums of (d, d) matrices are held, whatever the number of sites.
    """
    count, xx, gram = 0, torch.tensor(0.0), torch.tensor(0.0)
    for c in sites:
        count, xx = count + 1, xx + c.xx
        if c.yy > 0:
            gram = gram + c.xy @ c.xy.T / c.yy
    t = whitener(ridged(xx / count, ridge))
    vectors = torch.linalg.eigh(t.T @ (gram + torch.zeros_like(xx)) @ t).eigenvectors
    a = t @ vectors.flip(1)[:, :rank]
    return torch.nn.functional.pad(a, (0, rank - a.shape[1]))


def project(c: Centred, a: Tensor) -> Centred:
    """The moments of a site whose inputs are replaced by x A."""
    return Centred(mean_x=c.mean_x @ a, mean_y=c.mean_y, xx=a.T @ c.xx @ a, xy=a.T @ c.xy, yy=c.yy)


def explained_variance(moments: Moments, linear_map: Tensor, bias: Tensor) -> float:
    """R^2 of x W + b over the tokens of `moments`; negative where the mean of the targets predicts better.

    It is NaN where the targets are constant, as there is nothing to explain.
    """
    c = centre(moments)
    offset = c.mean_y - c.mean_x @ linear_map - bias
    error = c.yy - 2 * (linear_map * c.xy).sum() + ((c.xx @ linear_map) * linear_map).sum() + offset @ offset
    return float(1 - error / c.yy) if c.yy > 0 else float("nan")


def uncentred(moments: Moments) -> Centred:
    """The second moments themselves, for maps without a bias: as if inputs and targets had mean zero."""
    moments = _of_one_feature(moments)
    n, zero_x, zero_y = moments.n, torch.zeros_like(moments.x), torch.zeros_like(moments.y)
    return Centred(mean_x=zero_x, mean_y=zero_y, xx=moments.xx / n, xy=moments.xy / n, yy=moments.yy / n)


def varying(c: Centred) -> Tensor:
    """Which inputs (d) are not constant, to the precision of their sums."""
    return c.xx.diagonal() > ROUNDING * c.mean_x.square()


def scalar_weight(c: Centred, ridge: float) -> Tensor:
    """Returns the w () that minimises E|y - w x|^2 + penalty over centred inputs and targets; 0 if all are constant.

    Raises:
        SubFitError: if the ridge is negative.
    """
    check_ridge(ridge)
    keep = varying(c)
    variance = (1 + ridge) * c.xx.diagonal()[keep].sum()
    return c.xy.diagonal()[keep].sum() / torch.where(variance > 0, variance, torch.inf)


def diagonal_weights(c: Centred, ridge: float) -> Tensor:
    """Returns the w (d) that minimises E|y - x diag(w)|^2 + penalty over centred pairs; 0 where x is constant."""
    keep = varying(c)
    variance = ridged(c.xx, ridge).diagonal()
    return torch.where(keep, c.xy.diagonal() / torch.where(keep, variance, torch.inf), 0.0)


def ridged_loss(c: Centred, weight: Tensor, ridge: float) -> Tensor:
    """Returns E|y - x W|^2 + ridge * mean variance of x * |W|^2 over centred inputs and targets."""
    return c.yy - 2 * (weight * c.xy).sum() + (weight * (ridged(c.xx, ridge) @ weight)).sum()


def diagonal_and_low_rank(c: Centred, rank: int, ridge: float, alternations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns w (d), A (d, rank) and B (rank, d), such that W = diag(w) + A B has a small `ridged_loss`.

    There is no closed form for both; given one, the other has one: A B is the reduced-rank regression of what diag(w)
    leaves, in the metric of the inputs, and w the diagonal regression of what A B leaves. No step increases the loss. The
    start is the better of w = 0 and of the diagonal regression alone, so neither part does better alone.

    Args:
        alternations: how many times w and A B are refitted to each other.
    """
    metric = ridged(c.xx, ridge)
    t, keep = whitener(metric), varying(c)
    variance = torch.where(keep, metric.diagonal(), torch.inf)

    def low_rank(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return w, *factors(t, t.T @ (c.xy - metric * w), rank)

    def loss(found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        w, a, b = found
        return ridged_loss(c, w.diag() + a @ b, ridge)

    found = min((low_rank(w) for w in (torch.zeros_like(c.mean_x), diagonal_weights(c, ridge))), key=loss)
    for _ in range(alternations):
        _, a, b = found
        left = c.xy.diagonal() - ((metric @ a) * b.T).sum(1)
        found = low_rank(torch.where(keep, left / variance, 0.0))
    return found


def rank_gains(c: Centred, ridge: float) -> Tensor:
    """Returns by how much each unit of rank lowers the loss of `reduced_rank`, (d), in descending order."""
    t = whitener(ridged(c.xx, ridge))
    gains = torch.linalg.svdvals(t.T @ c.xy).square()
    return torch.nn.functional.pad(gains, (0, len(c.mean_x) - len(gains)))


def allocate_ranks(gains: list[Tensor], total: int) -> list[int]:
    """Spreads `total` units of rank over sites, at least one each, so that the sum of their gains is largest.

    Taking the largest first is optimal, since the gains (d) of each site descend.
    """
    more = torch.stack(gains)[:, 1:]
    taken = more.flatten().argsort(descending=True, stable=True)[: total - len(gains)]
    return [1 + int(count) for count in torch.bincount(taken // more.shape[1], minlength=len(gains))]
