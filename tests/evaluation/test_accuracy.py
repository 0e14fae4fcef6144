import pytest

from subfit.evaluation.accuracy import TaskScores, average, describe_scores

CHOICE = TaskScores("choice", [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], 0.25, [-1.0, -2.0, -3.0, -4.0])
DENSE = TaskScores("choice", [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], 0.25)
GREEDY, DENSE_GREEDY = TaskScores("greedy", [1.0, 0.0], None, 0.0), TaskScores("greedy", [1.0, 1.0], None, 0.0)


def test_a_task_by_hand():
    found = describe_scores(CHOICE, DENSE)
    assert (found["items"], found["metric"], found["acc"], found["acc_norm"]) == (4, "acc_norm", 0.25, 0.5)
    assert found["acc_error"] == pytest.approx(0.25) and found["log_likelihood"] == -2.5
    assert (found["reference_acc"], found["reference_acc_norm"]) == (0.5, 0.75)
    assert (found["difference"], found["difference_error"]) == (-0.25, pytest.approx(0.25))  # 0, 0, -1, 0
    assert found["retained"] == pytest.approx(2 / 3) and found["retained_above_chance"] == pytest.approx(0.25 / 0.5)


def test_without_a_reference_and_without_choices():
    found = describe_scores(GREEDY)
    assert set(found) == {"items", "chance", "metric", "acc", "acc_error"} and found["metric"] == "acc"
    assert describe_scores(GREEDY, DENSE_GREEDY)["retained"] == 0.5


def test_the_mean_over_tasks_by_hand():
    found = average([describe_scores(CHOICE, DENSE), describe_scores(GREEDY, DENSE_GREEDY)])
    assert (found["accuracy"], found["reference_accuracy"], found["chance"]) == (0.5, 0.875, 0.125)
    assert found["retained"] == pytest.approx(0.5 / 0.875) and found["retained_above_chance"] == pytest.approx(0.5)
    assert found["difference"] == -0.375 and found["difference_error"] == pytest.approx((0.25**2 + 0.5**2) ** 0.5 / 2)


def test_a_reference_that_only_guesses_has_nothing_to_retain():
    guesses = TaskScores("toy", [0.0, 0.0], None, 0.0)
    found = describe_scores(guesses, guesses)
    assert found["retained"] is None and found["retained_above_chance"] is None and found["difference"] == 0
    one = average([describe_scores(TaskScores("toy", [1.0], None, 0.5), TaskScores("toy", [0.0], None, 0.5))])
    assert one["accuracy_error"] is None and one["retained"] is None
