"""Uncertainty of measurements: bootstrap intervals and standard errors."""

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95


def bootstrap_interval(numerators: Tensor, denominators: Tensor, seed: int) -> tuple[float, float] | None:
    """Returns the 95 % percentile bootstrap interval of sum(numerators) / sum(denominators), resampled in pairs.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        numerators, denominators: (windows), float64: what is summed over each window, such as nats and tokens.
        seed: seed of the resampling.

    Returns:
        The lower and the upper end; None for fewer than two windows, which say nothing about how windows vary.
    """
    count = len(numerators)
    if count < 2:
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


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def standard_error(values: list[float]) -> float | None:
    """Returns the standard error of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    return float(torch.tensor(values, dtype=torch.float64).std(correction=1)) / len(values) ** 0.5
