"""Tests of whether two models differ that were measured on the same windows, or with the same seeds."""

from collections.abc import Sequence
from math import inf

import torch
from scipy.special import stdtr


def paired_p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the two-sided p-value of Student's paired t-test: that the means of two measurements are equal.

    Args:
        one, other: at least two values each, of the same windows or seeds in the same order.
    """
    differences = torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
    average, spread, count = float(differences.mean()), float(differences.std(correction=1)), len(differences)
    if average == 0:
        return 1.0
    statistic = abs(average) / spread * count**0.5 if spread else inf
    return 2 * float(stdtr(count - 1, -statistic))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that allow for how many they are: one below 0.05 by chance is as rare in all of them as in one alone.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    found, largest = dict[int, float](), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = found[index] = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
    return [found[index] for index in range(len(p_values))]
