"""Whatever goes wrong in a fine-tuning, the fit is kept and saved; and the process is left as it was."""

import json
import logging
import signal
import sys
import warnings

import lightning
import pytest
import torch
from conftest import Given, recipe, tiny_model, tiny_tokens
from forked import run

from subfit import api
from subfit.finetuning.distillation import Distillation
from subfit.finetuning.lora import Adapters
from subfit.finetuning.settings import FineTuning, LoRA
from subfit.pipeline import compress_model


class Raises(lightning.Callback):
    """Raises after some steps."""

    def __init__(self, error: BaseException, step: int):
        self.error, self.step = error, step

    def on_train_batch_end(self, trainer, *args, **kwargs):
        if trainer.global_step == self.step:
            raise self.error


def tuned(callbacks=(), steps: int = 12, **given):
    """A model with bypasses that are fine-tuned, unless in no steps."""
    trainer = {"max_steps": steps, "val_check_interval": 2, "callbacks": list(callbacks)}
    settings = FineTuning(trainer=trainer, **given) if steps else None
    made = recipe(selector=Given(["attention.0", "ffn.0", "attention.2", "ffn.3"]), finetune=settings)
    return compress_model(tiny_model(), tiny_tokens(40, 32), made)


def same(one, other) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


ERRORS = [
    ValueError("mine"),
    RuntimeError("shapes do not match"),
    torch.OutOfMemoryError("CUDA out of memory"),
    OSError(28, "No space left"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_after_any_error_the_best_weights_so_far_stay(error, capsys, spoilt):
    early, late = tuned([Raises(error, 1)]), tuned([Raises(error, 7)])
    assert early.record["finetune"]["kept"] == "closed-form" and same(early, tuned(steps=0))
    assert late.record["finetune"]["kept"] == "fine-tuned" and late.record["finetune"]["step"] == 6
    said = capsys.readouterr().err
    for result in (early, late):
        assert str(error) in result.record["finetune"]["stopped"] and result.record["finetune"]["stopped"] in said
        assert all(type(p) is torch.nn.Parameter and p.grad is None for p in result.model.parameters())


def test_out_of_memory_in_a_step_saves_the_closed_form_fit(model_folder, text_file, tmp_path, monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee the documentation")

    monkeypatch.setattr(Distillation, "training_step", out_of_memory)
    output = tmp_path / "out"
    given = {"model": str(model_folder), "calibration": {"path": str(text_file), "windows": 12, "length": 32}}
    api.compress(**given, finetune={"trainer": {"max_steps": 2}}, output=str(output))
    api.compress(**given, output=str(tmp_path / "plain"))
    record = json.loads((output / "compression.json").read_text())["finetune"]
    assert record["stopped"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB."
    assert record["kept"] == "closed-form" and record["kl_after"] == record["kl_before"] > 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (output, tmp_path / "plain")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("where", ["__init__", "merge"])
def test_an_error_about_adapters_leaves_the_closed_form_fit(where, monkeypatch, spoilt):
    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Adapters, where, out_of_memory)
    result = tuned(lora=LoRA(layers=2))
    assert result.record["finetune"]["kept"] == "closed-form" and "memory" in result.record["finetune"]["stopped"]
    assert same(result, tuned(steps=0))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_ends_the_run(error):
    before = signal.getsignal(signal.SIGINT)  # a process in the background may ignore it
    with pytest.raises(error):
        tuned([Raises(error(), 3)])
    assert signal.getsignal(signal.SIGINT) is before


STATE = """
import logging, sys, warnings
from subfit import api

def state():
    loggers = {name: it for name, it in logging.root.manager.loggerDict.items() if isinstance(it, logging.Logger)}
    levels = {name: (it.level, it.disabled, len(it.filters)) for name, it in loggers.items()}
    return {**levels, "": (logging.root.level, len(logging.root.handlers))}, list(warnings.filters)

early = "--early" in sys.argv
if early:
    import lightning.pytorch.cli
    logging.getLogger("lightning.pytorch").setLevel(logging.DEBUG)
(levels, filters), (model, text, output) = state(), sys.argv[1:4]
data = {"path": text, "windows": 12, "length": 32}
api.compress(model=model, calibration=data, finetune={"trainer": {"max_steps": 2}}, logger=sys.argv[4], output=output)
found = state()
print({name: (level, found[0].get(name)) for name, level in levels.items() if level != found[0].get(name)})
print([entry for entry in found[1] if entry not in filters], [entry for entry in filters if entry not in found[1]])
"""


@pytest.mark.parametrize("early", [["csv", "--early"], ["csv"], ["none"]])
def test_no_logger_level_and_no_warning_filter_is_changed_after_a_run(early, model_folder, text_file, tmp_path):
    """Whether Lightning was imported, and made to say all, before the run, or by it; once in a fresh Python."""
    command = [sys.executable, "-c", STATE, str(model_folder), str(text_file), str(tmp_path / "out"), *early]
    done = run(command, tmp_path, fresh=early == ["csv"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{}\n[] []\n"


def test_nor_after_one_that_fails():
    logger = logging.getLogger("lightning.pytorch")
    level, filters = logger.level, list(warnings.filters)
    tuned([Raises(ValueError("mine"), 1)])
    assert logger.level == level and warnings.filters == filters
