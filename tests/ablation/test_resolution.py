"""Which differences between rows are marked, and seeds as replicates; through the report, as its reader sees them."""

import math
import re

import numpy as np
import pytest
from scipy import stats
from test_report import row, write

from subfit.ablation.replicates import merge_seeds
from subfit.ablation.report import report
from subfit.ablation.resolution import p_value, unresolved

WINDOWS = 16
BASE = np.random.default_rng(0).normal(3, 0.5, WINDOWS)  # the losses of windows: they differ more than models do


def measured(index, losses, sha="a", **values):
    """A row with the losses of its windows, in nats, where those of the dense model are 3 on average."""
    found = row(index, ratio=float(np.exp(np.mean(losses) - 3)), **values)
    found["texts"]["evaluation"] |= {"window_losses": list(losses), "perplexity_ratio_interval": [1.0, 2.0]}
    return found | {"evaluation_tokens": {"sha256": sha}}


def shifted(by, seed, p=None):
    """Losses that are higher by `by` on average; or by as much as a paired t-test gives this p-value."""
    noise = np.random.default_rng(seed).normal(0, 0.1, WINDOWS)
    if p is not None:
        by = stats.t.isf(p / 2, WINDOWS - 1) * stats.sem(noise)
    return BASE + by + noise - noise.mean()


def shown(folder, rows):
    """The rows of the table, as lists of cells, and the page."""
    page = report([write(folder / "runs", rows)], str(folder / "page"))
    lines = page.with_name("table.md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])], page.read_text()


def test_differences_that_may_be_chance_are_marked(tmp_path):
    rows = [
        measured(0, BASE, scorer="best"),
        measured(1, shifted(0.01, 1), scorer="close"),
        measured(2, shifted(0.2, 2), scorer="far"),
        measured(3, shifted(0.01, 1), scorer="other windows", sha="b"),
        row(4, ratio=9.0, scorer="older"),
    ]
    (_, *cells), page = shown(tmp_path, rows)
    assert {name: ratio.endswith("≈") for name, ratio, *_ in cells} == {
        "best": False,
        "close": True,
        "far": False,
        "other windows": False,
        "older": False,
    }
    assert "≈: not resolved from the lowest ratio, or" in page and "at least 10 windows are needed" in page
    expected = stats.ttest_rel(
        rows[0]["texts"]["evaluation"]["window_losses"], rows[2]["texts"]["evaluation"]["window_losses"]
    )
    assert p_value(rows[0], rows[2], "evaluation") == pytest.approx(expected.pvalue)
    assert p_value(rows[0], rows[3], "evaluation") is None is p_value(rows[0], rows[4], "evaluation")


def answered(index, by_task, data="a", **values):
    """A row with the answers to each task's items, 1 where they are right; half of the dense model's are."""
    tasks = {name: {"correct": "".join(map(str, answers))} for name, answers in by_task.items()}
    retained = float(np.mean([np.mean(answers) for answers in by_task.values()])) / 0.5
    mean = {"retained": retained, "retained_above_chance": None, "reference_accuracy": 0.5}
    return row(index, **values) | {"tasks": tasks, "tasks_mean": mean, "depends_on": {"data": data}}


def test_accuracies_that_may_be_the_highest_by_chance_are_marked(tmp_path):
    rng = np.random.default_rng(1)
    best = {name: rng.integers(0, 2, items) for name, items in (("a", 400), ("b", 200))}
    worse = {share: {n: x * (rng.random(len(x)) > share) for n, x in best.items()} for share in (0.005, 0.3)}
    rows = [
        answered(0, best, scorer="best"),
        answered(1, worse[0.005], scorer="close"),
        answered(2, worse[0.3], scorer="far"),
        answered(3, worse[0.005], data="b", scorer="other items"),
        answered(4, {name: x[:20] for name, x in worse[0.005].items()}, scorer="few"),
        answered(5, {f"other {name}": x for name, x in worse[0.005].items()}, scorer="other tasks"),
    ]
    (heading, *cells), page = shown(tmp_path, rows)
    column = heading.index("accuracy retained ↑")
    assert {cells[i][0]: cells[i][column].endswith("≈") for i in range(6)} == {
        "best": False,
        "close": True,
        "far": False,
        "other items": False,
        "few": False,
        "other tasks": False,
    }
    assert "≈: not resolved from the lowest ratio, or the highest accuracy" in page


def test_rows_are_compared_at_the_same_value_of_a_numeric_axis(tmp_path):
    rows = [
        measured(place, shifted(by, place), scorer=scorer, sparsity=sparsity)
        for place, (scorer, sparsity, by) in enumerate([("a", 0.25, 0), ("b", 0.25, 0.01), ("a", 0.5, 1), ("b", 0.5, 1.01)])
    ]
    (_, *cells), _ = shown(tmp_path, rows)
    assert sum(ratio.endswith("≈") for _, _, ratio, *_ in cells) == 2


def test_one_low_p_value_among_many_is_expected():
    low = [measured(0, BASE, scorer="lowest"), measured(1, shifted(0, 1, p=0.03), scorer="low")]
    others = [measured(place, shifted(0, place, p=0.5), scorer=str(place)) for place in range(2, 12)]
    assert unresolved(low, ["scorer"], "evaluation") == []
    assert unresolved([*low, *others], ["scorer"], "evaluation") == [low[1], *others]


def test_rows_that_differ_in_their_seed_alone_are_one(tmp_path):
    ratios = {"a": [1.2, 1.3, 1.25], "b": [1.21, 1.33, 1.24], "c": [1.9, 2.1, 2.0]}
    rows = [
        row(f"{name}{seed}", ratio=value, scorer=name, seed=seed)
        for name, values in ratios.items()
        for seed, value in enumerate(values)
    ]
    (heading, *cells), page = shown(tmp_path, rows)
    assert heading[:3] == ["scorer", "seeds", "perplexity ratio, evaluation ↓"] and len(cells) == 3
    assert "Each of the 9 cells" in page and "geometric means over the seeds" in page
    for (name, seeds, ratio, *_), values in zip(cells, ratios.values(), strict=True):
        logs = np.log(values)
        low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
        found = [float(number) for number in re.findall(r"[\d.]+", ratio)]
        assert found == pytest.approx([math.exp(logs.mean()), math.exp(low), math.exp(high)], abs=0.006)
        assert seeds == "3" and ratio.endswith("≈") == (name == "b")
    merged = merge_seeds(rows)
    expected = stats.ttest_rel(np.log(ratios["a"]), np.log(ratios["b"]))
    assert p_value(merged[0], merged[1], "evaluation") == pytest.approx(expected.pvalue)


def test_two_seeds_have_no_interval(tmp_path):
    tasks = {"tasks_mean": {"retained": 0.9, "retained_above_chance": None, "reference_accuracy": 0.5}}
    rows = [row(seed, ratio=1.5 + seed / 10, seed=seed) | tasks for seed in (0, 1)]
    (heading, (seeds, ratio, accuracy, *_)), page = shown(tmp_path, rows)
    assert heading[0] == "seeds" and (seeds, ratio, accuracy) == ("2", "1.55", "90%")
    assert "A ratio without an interval" in page and "An accuracy without an interval" in page
    assert "at least 3 seeds are needed" in page


def test_seeds_of_cells_that_differ_otherwise_stay_apart():
    rows = [row(place, scorer=scorer, seed=place) for place, scorer in enumerate("ab")]
    assert merge_seeds(rows) is rows
