"""What the pictures of a report show, read from the drawn figures."""

import pytest

from subfit.ablation.depth import draw_score_ranks, draw_selections
from subfit.ablation.effects import draw_accuracy, draw_effects
from subfit.ablation.figures import LINES, draw_cache, draw_curves, draw_tradeoff, draw_trend


def row(ratio, removed=0, cache=8, **values):
    sites = [f"{kind}.{layer}" for layer in range(3) for kind in ("attention", "ffn")]
    return {
        "values": values,
        "texts": {
            "evaluation": {"perplexity_ratio": ratio, "perplexity_ratio_interval": [ratio - 0.05, ratio + 0.05]},
            "story": {"perplexity_ratio": 2 * ratio},
        },
        "scores": {name: float(place) for place, name in enumerate(sites)},
        "selected": sites[:1],
        "size": {
            "before": {"parameters": 10_000_000, "kv_bytes_per_token": 8},
            "after": {"parameters": 10_000_000 - removed, "kv_bytes_per_token": cache},
        },
        "configuration": {"scorer": {"class_path": "magnitude"}},
        "tasks_mean": {"retained": 1 / ratio, "difference_error": 0.01, "reference_accuracy": 0.5},
    }


def lines(figure):
    (panel,) = figure.axes
    return [[(round(x, 6), round(y, 6)) for x, y in line.get_xydata()] for line in panel.lines]


def test_a_tradeoff_joins_the_cells_of_a_method():
    rows = [row(1.5, 2_000_000, 6, preset="a", sparsity=0.2), row(1.2, 1_000_000, 7, preset="a", sparsity=0.1)]
    rows += [row(1.4, 2_000_000, 4, preset="best", sparsity=0.2), row(1.1, 1_000_000, 5, preset="best", sparsity=0.1)]
    axes = ["preset", "sparsity"]
    assert sorted(lines(draw_tradeoff(rows, axes, "evaluation"))) == [[(1, 1.1), (2, 1.4)], [(1, 1.2), (2, 1.5)]]
    assert sorted(lines(draw_tradeoff(rows, axes, "story"))) == [[(1, 2.2), (2, 2.8)], [(1, 2.4), (2, 3.0)]]
    assert sorted(lines(draw_cache(rows, axes, "evaluation"))) == [[(12.5, 1.2), (25, 1.5)], [(37.5, 1.1), (50, 1.4)]]
    assert sorted(lines(draw_trend(rows, axes, "evaluation"))) == [[(0.1, 1.1), (0.2, 1.4)], [(0.1, 1.2), (0.2, 1.5)]]


def test_curves_are_drawn_over_tokens_where_they_are_known():
    points = [{"step": 10 * i, "tokens": 2000 * i, "ratio": 2 - i / 10} for i in range(3)]
    rows = [{**row(1.5, rate=rate), "finetune": {"curve": [dict(point) for point in points]}} for rate in (1, 2)]
    figure = draw_curves(rows, ["rate"])
    assert lines(figure) == [[(0, 2), (2, 1.9), (4, 1.8)]] * 2 and "tokens" in figure.axes[0].get_xlabel()
    del rows[0]["finetune"]["curve"][1]["tokens"]
    figure = draw_curves(rows, ["rate"])
    assert lines(figure) == [[(0, 2), (10, 1.9), (20, 1.8)]] * 2 and figure.axes[0].get_xlabel() == "step"


def test_of_many_methods_the_best_are_drawn_and_ours_always():
    rows = [row(2 + place, part * 10**6, preset=f"{place}", sparsity=part / 10) for place in range(9) for part in (1, 2)]
    rows += [row(99, part * 10**6, preset="subfit", sparsity=part / 10) for part in (1, 2)]
    figure = draw_tradeoff(rows, ["preset", "sparsity"], "evaluation")
    labels = [text.get_text().split(" ")[0] for text in figure.axes[0].texts]
    assert sorted(labels) == ["0", "1", "2", "3", "4", "5", "subfit"] and len(labels) == LINES
    assert figure.axes[0].get_title(loc="left").endswith(": 7 of 10")


def test_effects_are_sorted_and_tell_texts_or_a_second_axis_apart():
    rows = [row(3.0, kind="c"), row(1.5, kind="a"), row(400.0, kind="lost"), row(2.0, kind="b")]
    (panel,) = draw_effects(rows, ["kind"]).axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["a", "b", "c", "lost"]
    assert [text.get_text() for text in panel.get_legend().texts] == ["evaluation text", "story text"]
    assert [text.get_text() for text in panel.texts] == ["400; 800 →"] and panel.get_xlim()[1] < 100
    rows = [row(ratio, kind=kind, way=way) for kind, way, ratio in (("a", "x", 2.0), ("a", "y", 1.5), ("b", "x", 1.2))]
    (panel,) = draw_effects(rows, ["kind", "way"]).axes
    assert [text.get_text() for text in panel.get_legend().texts] == ["x", "y"]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["b", "a"]


def test_several_cells_of_a_value_are_one_geometric_mean():
    rows = [row(ratio, kind=kind, sparsity=ratio) for kind, ratio in (("a", 1.0), ("a", 4.0), ("b", 3.0), ("b", 3.0))]
    (panel,) = draw_effects(rows, ["kind", "sparsity"]).axes
    means = [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "o"]
    assert means == pytest.approx([2.0, 3.0])


def test_accuracy_has_the_highest_on_top():
    (panel,) = draw_accuracy([row(2.0, kind="a"), row(1.25, kind="b")], ["kind"]).axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["b", "a"]
    assert [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "o"] == pytest.approx([80, 50])


def test_layers_are_whole_numbers():
    rows = [row(1.5, kind="a"), row(1.6, kind="b")]
    for figure in (draw_score_ranks(rows), draw_selections(rows, ["kind"])):
        assert [tick for tick in figure.axes[-1].get_xticks() if -0.5 <= tick <= 2.5] == [0, 1, 2]
