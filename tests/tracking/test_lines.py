import pytest
from hypothesis import given
from hypothesis import strategies as st

from subfit.tracking.lines import Line, draw_lines, spread

SHARES = st.floats(0, 1)


@given(st.lists(SHARES, min_size=1, max_size=7), st.lists(st.floats(0.01, 0.3), min_size=7, max_size=7))
def test_spread_labels_keep_their_order_and_do_not_overlap(places, sizes):
    sizes = sizes[: len(places)]
    moved = spread(places, sizes)
    order = sorted(range(len(places)), key=lambda index: places[index])
    for lower, upper in zip(order, order[1:], strict=False):
        assert moved[upper] - moved[lower] >= (sizes[upper] + sizes[lower]) / 2 - 1e-9
    if sum(sizes) <= 1:
        assert all(size / 2 - 1e-9 <= place <= 1 - size / 2 + 1e-9 for place, size in zip(moved, sizes, strict=True))


def test_labels_that_do_not_overlap_stay():
    assert spread([0.9, 0.1, 0.5], [0.1, 0.1, 0.1]) == pytest.approx([0.9, 0.1, 0.5])


def test_labels_at_the_ends_of_lines_do_not_overlap_and_are_within_the_picture():
    names = [
        "best, equal net parameters",
        "subfit",
        "llm_streamline",
        "kl(bypass=low_rank(ridge=0.05))",
        "nbl",
        "sleb",
        "puzzle",
    ]
    lines = [Line(name, [1, 2, 3 + place % 2], [1.1, 1.4, 2 + place / 100]) for place, name in enumerate(names)]
    figure, panel = draw_lines(lines, "title", "across", "up")
    figure.canvas.draw()
    for text in panel.texts:
        text.arrowprops = text.arrow_patch = None  # the line to it
    boxes = [text.get_window_extent() for text in panel.texts]
    assert len(boxes) == len(names) and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    whole = figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in boxes)


def test_a_line_that_is_lost_leaves_the_picture_and_says_where_it_ends():
    figure, panel = draw_lines([Line("a", [1, 2], [1.2, 1.5]), Line("b", [1, 2], [1.3, 700.0])], "", "", "")
    assert panel.get_ylim()[1] < 30 and [text.get_text() for text in panel.texts] == ["a", "b ↑ 700"]
