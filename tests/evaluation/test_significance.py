import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from subfit.evaluation.significance import adjusted, paired_accuracy_p_value, paired_p_value


@given(st.lists(st.tuples(st.floats(-5, 5, width=16), st.floats(-5, 5, width=16)), min_size=3, max_size=20))
def test_the_p_value_is_that_of_scipy(pairs):
    one, other = zip(*pairs, strict=True)
    if len({a - b for a, b in pairs}) > 1:
        assert paired_p_value(one, other) == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=1e-9)


def test_measurements_without_any_spread():
    assert paired_p_value([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1
    assert paired_p_value([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]) == 0


def test_the_p_value_of_accuracies_is_that_of_the_bootstrap():
    """Items are drawn again with replacement, within each task: how often the mean difference is on the other side of 0."""
    rng = np.random.default_rng(0)
    tasks = [(rng.random(items) < 0.5, rng.random(items) < right) for items, right in ((300, 0.55), (120, 0.5), (500, 0.55))]
    drawn = sum((one.astype(float) - other)[rng.integers(0, len(one), (20_000, len(one)))].mean(1) for one, other in tasks)
    expected = 2 * min((drawn > 0).mean(), (drawn < 0).mean())
    found = paired_accuracy_p_value([(one.astype(float), other.astype(float)) for one, other in tasks])
    assert 0.01 < found < 0.9 and found == pytest.approx(expected, rel=0.1)


def test_accuracies_without_any_difference_or_spread():
    assert paired_accuracy_p_value([([1.0, 0.0], [1.0, 0.0])]) == 1
    assert paired_accuracy_p_value([([1.0, 1.0], [0.0, 0.0])]) == 0


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_adjusted_p_values_reject_what_holm_rejects(p_values, level):
    """Step by step: the lowest is compared with level / count, the next with level / (count - 1), until one is not below."""
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(adjusted(p_values)) if p <= level} == rejected
