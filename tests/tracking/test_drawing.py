import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from subfit.tracking.drawing import OURS, colours_of, plain_logarithms, wrapped


@given(st.floats(0.02, 50), st.floats(1.3, 900))
def test_a_logarithmic_axis_has_plain_labels(low, factor):
    panel = Figure().subplots()
    plain_logarithms(panel, "y", (low, low * factor))
    seen = [value for value in panel.yaxis.get_major_locator()() if low <= value <= low * factor]
    labels = [panel.yaxis.get_major_formatter()(value) for value in seen]
    assert 2 <= len(seen) <= 14 and len(set(labels)) == len(labels)
    assert [float(text) for text in labels] == pytest.approx(seen)
    assert not panel.yaxis.get_minorticklocs().size


def test_ours_have_their_own_colours_and_others_are_told_apart():
    colours = colours_of(["best", "best, equal net parameters", "subfit(quantile=0.9)", "subfitted", *map(str, range(6))])
    assert colours["best"] == colours["best, equal net parameters"] == OURS["best"]
    assert colours["subfit(quantile=0.9)"] == OURS["subfit"] and colours["subfitted"] not in OURS.values()
    assert len(set(colours.values())) == 2 + 7


@given(st.text("ab(, =", max_size=80))
def test_wrapping_keeps_the_text_and_the_width(name):
    assert wrapped(name).replace("\n", "").replace(" ", "") == name.replace(" ", "")
    assert all(len(line.rstrip("(, ")) <= 22 for line in wrapped(name).split("\n"))
