import numpy as np
import pytest

from subfit.evaluation.accuracy import TaskScores, average, describe_scores

TENFOLD = 10  # each pattern of answers, so that there are enough items for errors and intervals
CHOICE = TaskScores(
    "choice", [1.0, 0.0, 0.0, 0.0] * TENFOLD, [1.0, 1.0, 0.0, 0.0] * TENFOLD, 0.25, [-1.0, -2.0, -3.0, -4.0] * TENFOLD
)
DENSE = TaskScores("choice", [1.0, 1.0, 0.0, 0.0] * TENFOLD, [1.0, 1.0, 1.0, 0.0] * TENFOLD, 0.25)
GREEDY, DENSE_GREEDY = (TaskScores("greedy", values * 20, None, 0.0) for values in ([1.0, 0.0], [1.0, 1.0]))


def error(values: list[float]) -> float:
    return np.std(values, ddof=1) / len(values) ** 0.5


def test_a_task_by_hand():
    found = describe_scores(CHOICE, DENSE)
    assert (found["items"], found["metric"], found["acc"], found["acc_norm"]) == (40, "acc_norm", 0.25, 0.5)
    assert found["acc_error"] == pytest.approx(error(CHOICE.correct)) and found["log_likelihood"] == -2.5
    assert (found["reference_acc"], found["reference_acc_norm"]) == (0.5, 0.75)
    paired = error([0.0, 0.0, -1.0, 0.0] * TENFOLD)
    assert (found["difference"], found["difference_error"]) == (-0.25, pytest.approx(paired))
    assert found["retained"] == pytest.approx(2 / 3) and found["retained_above_chance"] == pytest.approx(0.25 / 0.5)


def test_what_is_retained_has_the_interval_of_its_definition():
    """The ratios r for which the mean of own - r * dense is within 1.96 of its errors of 0."""
    found = describe_scores(CHOICE, DENSE)
    for name, chance in (("retained", 0.0), ("retained_above_chance", 0.25)):
        for end in found[f"{name}_interval"]:
            pairs = zip(CHOICE.main(), DENSE.main(), strict=True)
            left = [own - chance - end * (dense - chance) for own, dense in pairs]
            assert abs(np.mean(left)) == pytest.approx(1.96 * error(left))
    mean = average([found])
    assert mean["retained_interval"] == found["retained_interval"]


def test_without_a_reference_and_without_choices():
    found = describe_scores(GREEDY)
    assert set(found) == {"items", "chance", "metric", "acc", "acc_error", "correct"} and found["metric"] == "acc"
    assert found["correct"] == "10" * 20 and describe_scores(CHOICE)["correct"] == "1100" * TENFOLD
    assert describe_scores(GREEDY, DENSE_GREEDY)["retained"] == 0.5


def test_the_mean_over_tasks_by_hand():
    tasks = [describe_scores(CHOICE, DENSE), describe_scores(GREEDY, DENSE_GREEDY)]
    found = average(tasks)
    assert (found["accuracy"], found["reference_accuracy"], found["chance"]) == (0.5, 0.875, 0.125)
    assert found["retained"] == pytest.approx(0.5 / 0.875) and found["retained_above_chance"] == pytest.approx(0.5)
    errors = [task["difference_error"] for task in tasks]
    assert found["difference"] == -0.375 and found["difference_error"] == pytest.approx(np.hypot(*errors) / 2)
    low, high = found["retained_interval"]
    assert low < found["retained"] < high < 0.5 / 0.875 + 0.2


def test_a_reference_that_only_guesses_has_nothing_to_retain():
    guesses = TaskScores("toy", [0.0] * 40, None, 0.0)
    found = describe_scores(guesses, guesses)
    assert found["retained"] is None and found["retained_above_chance"] is None and found["difference"] == 0
    lucky = TaskScores("toy", [1.0] * 11 + [0.0] * 29, None, 0.25)
    found = describe_scores(lucky, lucky)
    assert found["retained_above_chance"] == 1 and found["retained_above_chance_interval"] is None  # it may be by chance
    assert found["retained_interval"] == pytest.approx([1, 1])


def test_few_items_have_no_error_and_no_interval():
    few = TaskScores("toy", [1.0, 0.0] * 14, None, 0.0)
    found = average([describe_scores(few, few), describe_scores(CHOICE, DENSE)])
    assert found["accuracy_error"] is None and found["retained"] and found["retained_interval"] is None
    one = average([describe_scores(TaskScores("toy", [1.0], None, 0.5), TaskScores("toy", [0.0], None, 0.5))])
    assert one["accuracy_error"] is None and one["retained"] is None
