"""Models that cannot be timed side by side are refused."""

import pytest
from conftest import tiny_model

from subfit import SubFitError
from subfit.benchmarking.workload import Workload, check_comparable

SMALL = Workload(prompt_lengths=(8,), contexts=(16,), batch_sizes=(2,), new_tokens=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repeats": "7"}, "repeats is '7'; it must be a whole number"),
        ({"contexts": 512}, "contexts is 512; it must be a list"),
        ({"contexts": ("512",)}, "contexts is '512'; it must be a whole number of at least 1"),
    ],
)
def test_what_is_no_workload_is_refused_when_it_is_made(given, message):
    with pytest.raises(SubFitError, match=message):
        Workload(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 90}, "has 90 tokens"),
        ({"hidden_size": 16}, "width 16"),
        ({"max_position_embeddings": 12}, "12 positions"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(changes, message):
    with pytest.raises(SubFitError, match=message):
        check_comparable(tiny_model(), tiny_model(**changes), SMALL)
