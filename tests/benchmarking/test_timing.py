"""Turns and speed-ups, by hand."""

import pytest

from subfit.benchmarking.timing import interleave, speed_up


def test_measurements_take_turns_in_both_orders_and_warm_up_first():
    taken = []

    def measure(name):
        taken.append(name)
        return float(len(taken))

    seconds = interleave({"dense": lambda: measure("dense"), "compressed": lambda: measure("compressed")}, 3, 1)
    assert taken == ["dense", "compressed", *("compressed", "dense", "dense", "compressed", "compressed", "dense")]
    assert seconds == {"compressed": [3.0, 6.0, 7.0], "dense": [4.0, 5.0, 8.0]}


def test_speed_up_by_hand():
    found = speed_up({"dense": [4.0, 2.0, 3.0, 8.0], "compressed": [2.0, 2.0, 2.0, 2.0]}, ideal=2.0)
    assert found == {
        "measured": 1.75,
        "quartiles": [1.375, 2.5],
        "ideal": 2.0,
        "reached": 0.875,
        "saved": pytest.approx(6 / 7),
    }
    assert speed_up({"dense": [1.0], "compressed": [1.0]}, ideal=1.0)["saved"] is None
