import numpy
import pytest
import torch
from scipy import stats

from subfit.evaluation.intervals import bootstrap_interval, standard_error


def samples(count: int):
    generator = torch.Generator().manual_seed(1)
    weights = torch.randint(1, 9, (count,), generator=generator).double()
    return weights * (3 + torch.randn(count, generator=generator, dtype=torch.float64)), weights


def test_the_interval_is_that_of_scipy():
    above, below = samples(40)
    expected = stats.bootstrap(
        (above.numpy(), below.numpy()),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=20000,
        method="percentile",
        rng=numpy.random.default_rng(0),
    ).confidence_interval
    width = expected.high - expected.low
    assert bootstrap_interval(above, below, 0) == pytest.approx(tuple(expected), abs=width / 15)


def test_of_many_windows_it_is_the_normal_one():
    values = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap_interval(values, torch.ones(2000), 0)
    half = 1.96 * float(values.std()) / 2000**0.5
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), abs=half / 8)


def test_seeds_and_few_windows():
    above, below = samples(10)
    assert bootstrap_interval(above, below, 3) == bootstrap_interval(above, below, 3) != bootstrap_interval(above, below, 4)
    assert bootstrap_interval(above[:1], below[:1], 0) is None
    assert bootstrap_interval(2 * below, below, 0) == (2, 2)


def test_the_standard_error_by_hand():
    assert standard_error([1.0, 0.0, 0.0, 1.0]) == pytest.approx((1 / 3) ** 0.5 / 2)
    assert standard_error([1.0]) is None
