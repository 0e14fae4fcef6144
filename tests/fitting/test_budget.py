"""Budgets are rounded as in the paper."""

from conftest import recipe, tiny_model, tiny_tokens

from subfit.calibration.capture import Calibration
from subfit.fitting.budget import Budget


def test_budgets_are_rounded_as_in_the_paper():
    calibration = Calibration(tiny_model(num_hidden_layers=30), tiny_tokens())
    made = recipe()
    bypasses = {"attention": made.attention_bypass, "ffn": made.ffn_bypass}
    for sparsity, k in {0: 0, 0.125: 4, 0.1875: 6, 0.25: 8, 0.3125: 9, 0.375: 11}.items():
        budget = Budget(calibration, bypasses, sparsity)
        assert [budget.goal("attention"), budget.goal("ffn"), budget.goal()] == [k, k, 2 * k]
