import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from subfit.evaluation.significance import adjusted, paired_p_value


@given(st.lists(st.tuples(st.floats(-5, 5, width=16), st.floats(-5, 5, width=16)), min_size=3, max_size=20))
def test_the_p_value_is_that_of_scipy(pairs):
    one, other = zip(*pairs, strict=True)
    if len({a - b for a, b in pairs}) > 1:
        assert paired_p_value(one, other) == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=1e-9)


def test_measurements_without_any_spread():
    assert paired_p_value([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1
    assert paired_p_value([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]) == 0


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_adjusted_p_values_reject_what_holm_rejects(p_values, level):
    """Step by step: the lowest is compared with level / count, the next with level / (count - 1), until one is not below."""
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(adjusted(p_values)) if p <= level} == rejected
