import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from subfit.evaluation.intervals import bootstrap_interval, mean_interval, ratio_interval, standard_error


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
    assert bootstrap_interval(above[:9], below[:9], 0) is None
    assert bootstrap_interval(2 * below, below, 0) == (2, 2)


def test_the_standard_error_by_hand():
    assert standard_error([1.0, 0.0] * 20) == pytest.approx((10 / 39) ** 0.5 / 40**0.5)
    assert standard_error([1.0] * 29) is None


def test_the_interval_of_a_mean_is_students():
    values = [1.0, 2.0, 4.0, 8.0]
    expected = stats.t.interval(0.95, 3, numpy.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected) and mean_interval(values[:2]) is None


@given(st.floats(0.05, 1), st.floats(0.3, 1), st.floats(0.01, 0.1), st.floats(0.01, 0.1), st.floats(-0.9, 0.9))
def test_the_interval_of_a_ratio_holds_what_is_not_rejected(above, below, above_error, below_error, correlation):
    """Fieller's definition: a ratio r is in it if above - r * below is within 1.96 standard errors of 0."""
    covariance = correlation * above_error * below_error
    found = ratio_interval(above, below, above_error, below_error, covariance)
    assert (found is None) == (below / below_error <= 1.96)
    for r in numpy.linspace(-1, 8, 200) if found else []:
        error = (above_error**2 + (r * below_error) ** 2 - 2 * r * covariance) ** 0.5
        distance = abs(above - r * below) / error
        assert (found[0] <= r <= found[1]) == (distance <= 1.96) or distance == pytest.approx(1.96)


def test_the_interval_of_a_ratio_is_as_wide_as_the_bootstraps():
    rng = numpy.random.default_rng(0)
    dense = (rng.random(2000) < 0.6).astype(float)
    own = numpy.where(rng.random(2000) < 0.8, dense, rng.random(2000) < 0.4).astype(float)
    covariance = numpy.cov(own, dense) / 2000
    errors = covariance.diagonal() ** 0.5
    found = ratio_interval(own.mean(), dense.mean(), *errors, covariance[0, 1])
    expected = bootstrap_interval(torch.tensor(own), torch.tensor(dense), 0)
    assert found == pytest.approx(expected, abs=(expected[1] - expected[0]) / 15)
