"""The LightningModule and the data module by themselves, in a plain Trainer."""

import inspect
import subprocess
import sys
import textwrap

import lightning
import pytest
import torch
from conftest import recipe, tiny_model, tiny_tokens

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.evaluation.comparison import Comparison
from subfit.finetuning import Distillation, DistillationData, FineTuning
from subfit.model.replacing import switched_off
from subfit.pipeline import fit_recipe

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def fitted(dtype=torch.float32):
    """A tiny model with poor bypasses, its tokens and replacements."""
    calibration = Calibration(tiny_model().to(dtype), tiny_tokens(40, 32))
    poor = {"class_path": "linear", "init_args": {"ridge": 100.0}}
    replacements, _ = fit_recipe(calibration, recipe(sparsity=0.5, attention_bypass=poor, ffn_bypass=poor))
    return calibration.model, calibration.tokens, replacements


def divergence(model, tokens, replacements) -> float:
    with switched_off(replacements):
        comparison = Comparison(model, tokens)
    return comparison.measure(replacements)["kl"]


def trainer(**given) -> lightning.Trainer:
    return lightning.Trainer(**{"accelerator": "cpu", "max_steps": 20, **QUIET, **given})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_a_plain_trainer_the_divergence_falls_and_the_model_is_its_own_again(dtype):
    model, tokens, replacements = fitted(dtype)
    parameters, dense = dict(model.named_parameters()), {}
    with switched_off(replacements):
        dense = {name: value.clone() for name, value in model.state_dict().items()}
    asking = {name for name, parameter in parameters.items() if parameter.requires_grad}
    before = divergence(model, tokens, replacements)
    module = Distillation(model, replacements, FineTuning(stream=0.1))
    plain = trainer()
    plain.fit(module, datamodule=DistillationData(tokens))
    after = divergence(model, tokens, replacements)
    assert plain.global_step == 20 and after < 0.97 * before
    held_out = divergence(model, tokens[::10], replacements)
    assert float(plain.callback_metrics["validation/kl"]) == pytest.approx(held_out, rel=1e-3)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == asking
    assert {p.dtype for p in module.parameters()} == {torch.float32} and {p.dtype for p in model.parameters()} == {dtype}
    with switched_off(replacements):
        assert all(torch.equal(dense[name], value) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_after_an_error_the_model_has_its_own_parameters():
    model, tokens, replacements = fitted()
    parameters = dict(model.named_parameters())

    class Fails(lightning.Callback):
        def on_train_batch_end(self, *args, **kwargs):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        trainer(callbacks=[Fails()]).fit(Distillation(model, replacements), datamodule=DistillationData(tokens))
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model(tokens[:1]).logits.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_the_example_in_the_documentation_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(Distillation)
    code = textwrap.dedent(text.partition("steps:\n")[2].partition("\nIt logs")[0]).replace("max_steps=200", "max_steps=2")
    assert "trainer.fit(" in code
    found = {"model": tiny_model(), "tokens": tiny_tokens(20, 16), "recipe": recipe(sparsity=0.5)}
    exec(compile(code, "Distillation", "exec"), found)
    assert found["trainer"].global_step == 2


def test_what_cannot_be_trained_is_refused():
    model, tokens, replacements = fitted()
    with pytest.raises(SubFitError, match="give the Trainer max_steps"):
        trainer(max_steps=-1, max_epochs=1).fit(Distillation(model, replacements), datamodule=DistillationData(tokens))
    with pytest.raises(SubFitError, match="nothing to fine-tune"):
        Distillation(model, [])


def test_the_settings_need_neither_torch_nor_lightning():
    code = "import sys; from subfit.finetuning import FineTuning, LoRA; print({'torch', 'lightning'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
