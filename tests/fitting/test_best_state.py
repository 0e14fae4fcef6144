"""The best state so far, as fits by gradients and the fine-tuning keep it."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from subfit.fitting.best_state import BestState
from subfit.fitting.gradient_fit import fit_by_gradient


@given(st.lists(st.floats(allow_nan=True), min_size=1))
def test_it_is_the_first_of_the_lowest_and_never_nan_but_at_the_start(errors):
    now = [0]
    best = BestState(lambda: now[0])
    for now[0], error in enumerate(errors):
        best.update(error)
    numbers = [(error, step) for step, error in enumerate(errors) if error == error]
    expected = min(numbers)[1] if errors[0] == errors[0] else 0
    assert best.state == expected


def test_a_fit_by_gradients_ends_at_its_best_state_even_if_it_diverges():
    torch.manual_seed(0)
    module, x = nn.Linear(4, 4), torch.randn(200, 4)
    start = [parameter.detach().clone() for parameter in module.parameters()]

    def loss(a, b):
        return nn.functional.mse_loss(module(a), b)

    fit_by_gradient(module, loss, x, x, steps=40, learning_rate=float("inf"), batch=16, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(start, module.parameters(), strict=True))
    before = loss(x, x).item()
    fit_by_gradient(module, loss, x, x, steps=200, learning_rate=0.05, batch=64, seed=0)
    assert loss(x, x).item() < 0.1 * before
