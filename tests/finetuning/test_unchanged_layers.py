"""The layers before the first changed one run once for teacher and student, and nothing else is different."""

from contextlib import nullcontext

import pytest
import torch
from conftest import FAMILIES, Given, recipe, tiny_model, tiny_tokens
from families import tiny_model_of

from subfit.calibration.capture import Calibration
from subfit.finetuning.distillation import Distillation
from subfit.finetuning.settings import FineTuning, LoRA
from subfit.finetuning.unchanged_layers import UnchangedLayers
from subfit.model.submodules import decoder_layers
from subfit.pipeline import fit_recipe


def step(model, checkpointing=False, first=2, dtype=torch.float32):
    """Loss and gradients of a batch, and how often each layer ran in both passes.

    Args:
        first: layer whose FeedForward is replaced.
    """
    calibration = Calibration(model.to(dtype), tiny_tokens(30, 16))
    switches, _ = fit_recipe(calibration, recipe(selector=Given([f"ffn.{first}", "ffn.3"]), ffn_bypass="linear"))
    settings = FineTuning(stream=0.3, next_token=0.2, gradient_checkpointing=checkpointing)
    module, ran = Distillation(model, switches, settings), []
    module.setup("fit")
    norms = [next(iter(layer.children())) for layer in decoder_layers(model)[1]]
    hooks = [norm.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, norm in enumerate(norms)]
    loss, _ = module._losses(tiny_tokens(2, 16, seed=1))
    counts = [ran.count(i) for i in range(len(norms))]
    loss.backward()
    for hook in hooks:
        hook.remove()
    return loss.detach(), [weight.grad.clone() for weight in module.master_weights], counts


def plainly(monkeypatch, *args, **given):
    """The same where all layers run in both passes."""
    with monkeypatch.context() as patch:
        patch.setattr(UnchangedLayers, "passed_through", lambda self: nullcontext())
        return step(*args, **given)


def assert_equal(one, other):
    assert torch.equal(one[0], other[0]) and len(one[1]) == len(other[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_way(family, monkeypatch):
    for given in ({}, {"checkpointing": True}):
        found, plain = step(tiny_model(family), **given), plainly(monkeypatch, tiny_model(family), **given)
        assert_equal(found, plain)
        assert [a - b for a, b in zip(plain[2], found[2], strict=True)] == [1, 1, 0, 0]


def test_also_in_bfloat16_and_where_the_first_layer_is_changed(monkeypatch):
    for given in ({"dtype": torch.bfloat16}, {"first": 0}):
        assert_equal(step(tiny_model(), **given), plainly(monkeypatch, tiny_model(), **given))


def test_layers_that_leave_values_for_later_ones_run_twice(monkeypatch):
    """In Gemma 4, later layers share the keys of earlier ones."""
    found, plain = step(tiny_model_of("gemma4_text")), plainly(monkeypatch, tiny_model_of("gemma4_text"))
    assert_equal(found, plain)
    assert found[2] == plain[2]


def test_adapters_change_layers_too():
    model = tiny_model()
    calibration = Calibration(model, tiny_tokens(30, 16))
    switches, _ = fit_recipe(calibration, recipe(selector=Given(["ffn.3"]), ffn_bypass="linear"))
    assert UnchangedLayers(model, switches).count == 3
    from subfit.finetuning.lora import Adapters

    adapters = Adapters(model, LoRA(layers=2), [])
    assert UnchangedLayers(model, [*switches, adapters]).count == 2
