"""Losses of one's own, and the built-in ones against the plain formulas."""

import textwrap

import pytest
import torch
from conftest import Given, recipe, tiny_model, tiny_tokens, without_minutes

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.finetuning import losses
from subfit.finetuning.distillation import Distillation
from subfit.finetuning.losses import find_loss, stream_error
from subfit.finetuning.settings import FineTuning
from subfit.pipeline import compress_model, fit_recipe

EXAMPLE = textwrap.dedent(losses.__doc__.partition("reverse_kl: 0.5}`.\n")[2])


@pytest.fixture
def plugin(tmp_path):
    """The example of the documentation, as a file."""
    path = tmp_path / "my_losses.py"
    path.write_text(EXAMPLE)
    return path


def batch():
    """What a distillation makes of two windows."""
    calibration = Calibration(tiny_model("gpt2").double(), tiny_tokens(20, 16))
    made = recipe(selector=Given(["attention.1", "ffn.2"]), attention_bypass="linear", ffn_bypass="linear")
    module = Distillation(calibration.model, fit_recipe(calibration, made)[0])
    module.setup("fit")
    return module._run(tiny_tokens(2, 16, seed=1))


def test_the_documented_example_gives_the_plain_formulas(plugin):
    given = batch()
    head = given.model.get_output_embeddings()
    q, p = (head(output.last_hidden_state)[:, :-1].log_softmax(-1) for output in (given.student, given.teacher))
    expected = (q.exp() * (q - p)).sum(-1).mean()
    found = find_loss(f"{plugin}:reverse_kl")(given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = list(given.student_stream)
    gradients = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
    hidden = find_loss(f"{plugin}:hidden_states")(given)
    errors = given.student.last_hidden_state - given.teacher.last_hidden_state
    torch.testing.assert_close(hidden, errors.square().mean())


def test_the_stream_error_is_relative_and_has_a_value_for_each_changed_layer():
    given = batch()
    assert len(given.student_stream) == 2 and given.student_stream[0].shape == (2, 16, 32)
    naive = []
    for after, goal in zip(given.student_stream, given.teacher_stream, strict=True):
        naive += [((a - g).square().sum() / g.square().sum()).item() for a, g in zip(after, goal, strict=True)]
    assert stream_error(given).item() == pytest.approx(sum(naive) / len(naive))


def test_a_loss_of_ones_own_is_weighted_and_logged(plugin, monkeypatch):
    """By file and by dotted path."""
    monkeypatch.syspath_prepend(plugin.parent)
    records = []
    for further in ({}, {f"{plugin}:reverse_kl": 2.0}, {"my_losses.reverse_kl": 2.0}):
        settings = FineTuning(trainer={"max_steps": 2, "val_check_interval": 1}, losses=further)
        result = compress_model(tiny_model(), tiny_tokens(20, 16), recipe(sparsity=0.5, finetune=settings))
        records.append(without_minutes(result.record["finetune"]))
    plain, by_file, by_path = (record["curve"] for record in records)
    assert by_file == by_path and by_file[1]["training_loss"] > 2 * plain[1]["training_loss"]
    assert by_file[0]["kl"] == plain[0]["kl"]


@pytest.mark.parametrize("name", ["nothing", "nowhere.loss", "nowhere.py:loss", "json.nothing", "math.pi", "{broken}:loss"])
def test_what_is_no_loss_is_refused_in_one_line(name, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(SubFitError, match="finetune.losses: .* is no function") as raised:
        find_loss(name.format(broken=tmp_path / "broken.py"))
    assert "\n" not in str(raised.value)


def test_a_file_of_losses_is_a_module_like_any_other_and_is_run_once(tmp_path):
    """A dataclass looks its module up; without that, a file with one could not be imported."""
    path = tmp_path / "mine.py"
    lines = ["from __future__ import annotations", "from dataclasses import dataclass", "", "@dataclass", "class Weight:"]
    path.write_text("\n".join([*lines, "    value: float = 0.5", "", "def half(batch):", "    return Weight().value", ""]))
    found = losses.find_loss(f"{path}:half")
    assert found(None) == 0.5 and losses.find_loss(f"{path}:half") is found
