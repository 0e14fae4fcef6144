"""Strategies know their arguments, and get the run's seed."""

from copy import deepcopy

from subfit.registry import make
from subfit.strategies.bypasses.low_rank import LowRank
from subfit.strategies.scorers.subfit import SubFit


def test_arguments_with_defaults_by_position_and_by_name_and_of_copies():
    assert LowRank(4, ridge=0.5).arguments() == {"rank": 4, "share": 0.1, "ridge": 0.5, "reads": "input", "prior": "zero"}
    assert (
        SubFit(0.9).arguments() == {"quantile": 0.9} == deepcopy(SubFit(0.9)).arguments() == SubFit(0.9).clone().arguments()
    )
    assert make("selectors", "per_type").arguments() == {}
