"""Tests of whether two models differ that were measured on the same windows or items, or with the same seeds."""

from collections.abc import Sequence
from math import inf

import torch
from scipy.special import ndtr, stdtr


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


def paired_accuracy_p_value(tasks: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Returns the two-sided p-value of two models' mean accuracies over tasks being equal, each task with the same weight.

    Items are drawn independently, the tasks are given; the mean difference is taken as normal.

    Args:
        tasks: of each, 1 or 0 for each item, of the two models in the same order; at least two items.
    """
    differences = [torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64) for one, other in tasks]
    average = sum(float(each.mean()) for each in differences)
    variance = sum(float(each.var(correction=1)) / len(each) for each in differences)
    if average == 0:
        return 1.0
    return 2 * float(ndtr(-abs(average) / variance**0.5)) if variance else 0.0


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that allow for how many they are: one below 0.05 by chance is as rare in all of them as in one alone.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    found, largest = dict[int, float](), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = found[index] = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
    return [found[index] for index in range(len(p_values))]
