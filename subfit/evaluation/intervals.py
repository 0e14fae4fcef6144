"""Uncertainty of measurements: bootstrap, Student's and Fieller's intervals, and standard errors."""

from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from torch import Tensor

from subfit.evaluation.limits import FEWEST_ITEMS, FEWEST_SEEDS, FEWEST_WINDOWS, NORMAL

RESAMPLES = 2000
LEVEL = 0.95


def bootstrap_interval(numerators: Tensor, denominators: Tensor, seed: int) -> tuple[float, float] | None:
    """Returns the 95 % percentile bootstrap interval of sum(numerators) / sum(denominators), resampled in pairs.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        numerators, denominators: (windows), float64: what is summed over each window, such as nats and tokens.
        seed: seed of the resampling.

    Returns:
        The lower and the upper end; None for fewer than `FEWEST_WINDOWS`, of which it would be too narrow.
    """
    count = len(numerators)
    if count < FEWEST_WINDOWS:
        return None
    generator = torch.Generator().manual_seed(seed)
    above, below = numerators.cpu(), denominators.cpu()
    means = []
    for _ in range(RESAMPLES):  # one after the other: the memory does not grow with their number
        drawn = torch.randint(count, (count,), generator=generator)
        means.append(above[drawn].sum() / below[drawn].sum())
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.stack(means).quantile(tails).tolist()
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns Student's 95 % interval of the mean of normal values, such as those of several seeds.

    Returns:
        The lower and the upper end; None for fewer than `FEWEST_SEEDS`.
    """
    if len(values) < FEWEST_SEEDS:
        return None
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * _error(values)
    return mean(values) - half, mean(values) + half


def ratio_interval(
    above: float, below: float, above_error: float, below_error: float, covariance: float
) -> list[float] | None:
    """Returns the 95 % interval of the ratio of two means that are about normal.

    Source: Fieller, Some Problems in Interval Estimation, Journal of the Royal Statistical Society B 16 (1954).

    Args:
        above, below: the means.
        above_error, below_error: their standard errors.
        covariance: of the means.

    Returns:
        The lower and the upper end; None where the interval has none, for the lower mean may be 0.
    """
    square = NORMAL**2
    a, b, c = (
        below**2 - square * below_error**2,
        above * below - square * covariance,
        above**2 - square * above_error**2,
    )
    if a <= 0:
        return None
    root = max(b**2 - a * c, 0.0) ** 0.5  # below 0 by rounding alone
    return [(b - root) / a, (b + root) / a]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean of independent values; None for fewer than `FEWEST_ITEMS`."""
    return None if len(values) < FEWEST_ITEMS else _error(values)


def _error(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std(correction=1)) / len(values) ** 0.5
