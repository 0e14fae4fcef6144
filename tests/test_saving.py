"""A fine-tuning loses nothing: the closed-form result is saved before it, and what cannot go on is refused first."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from subfit import api, pipeline
from subfit.cli.main import main
from subfit.finetuning.distillation import Distillation
from subfit.model.loading import load
from subfit.tracking.provenance import processor

TUNED = ["--finetune.trainer.max_steps", "4", "--finetune.trainer.val_check_interval", "2"]


@pytest.fixture
def common(model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--calibration.path", str(text_file), "--calibration.windows", "12", "--calibration.length", "32"]
    return ["compress", "--model", str(model_folder), *data, "--evaluation.windows", "2"]


def interrupt_after(monkeypatch, step: int, error: BaseException) -> None:
    plain = Distillation.training_step

    def training_step(self, tokens, index):
        if self.global_step == step:
            raise error
        return plain(self, tokens, index)

    monkeypatch.setattr(Distillation, "training_step", training_step)


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_fine_tuning_leaves_the_closed_form_result_and_goes_on(
    common, tmp_path, monkeypatch, capsys, caplog, spoilt
):
    assert main([*common, "--output", "plain"]) == 0
    assert main([*common, *TUNED, "--output", "whole"]) == 0
    assert not equal(weights("plain"), weights("whole"))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, KeyboardInterrupt())
        assert main([*common, *TUNED, "--output", "out"]) == 130
    said = "interrupted; the closed-form result is in out; with --resume out.run/last.ckpt the fine-tuning goes on"
    assert capsys.readouterr().err.splitlines()[-1] == f"subfit compress: {said}"
    assert equal(weights("plain"), weights("out"))
    load("out", verify=True)
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["finetune"]["kept"] == "closed-form" and "ended before" in record["finetune"]["stopped"]
    assert main([*common, *TUNED, "--output", "out"]) == 2  # it is not overwritten by another run
    assert "the output folder out exists" in capsys.readouterr().err
    shutil.copytree("out", "other")
    changed = {**record, "configuration": {**record["configuration"], "seed": 1}}
    (tmp_path / "other" / "compression.json").write_text(json.dumps(changed))
    assert main([*common, *TUNED, "--output", "other", "--resume", "out.run/last.ckpt"]) == 2  # another run's result
    monkeypatch.setattr(pipeline, "processor", lambda: "Fast 9000")
    assert main([*common, *TUNED, "--output", "out", "--resume", "out.run/last.ckpt"]) == 0
    said = f"on another kind of processor, numbers may differ in their last digits: {processor()}; Fast 9000"
    assert f"resume: {said}" in caplog.messages
    assert equal(weights("whole"), weights("out"))
    load("out", verify=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert json.loads((tmp_path / "out" / "compression.json").read_text())["finetune"]["kept"] == "fine-tuned"
    assert main([*common, *TUNED, "--output", "out", "--resume", "out.run/last.ckpt"]) == 2  # it is finished


def test_what_a_run_cannot_go_on_from_is_refused_before_any_work(common, tmp_path, monkeypatch, capsys, text_file):
    assert main([*common, *TUNED, "--output", "whole"]) == 0
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    state = ["--resume", "whole.run/last.ckpt"]

    def refused(arguments, message):
        assert main([*common, *arguments, "--output", "again"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert message in line, line
        assert not (tmp_path / "again").exists() and not (tmp_path / "again.run").exists()

    with monkeypatch.context() as patch:
        patch.setattr(api, "model_of", lambda options: pytest.fail("the model was loaded"))
        refused(state, "resume: this run has no fine-tuning that could go on")
        refused([*TUNED, "--resume", "gone.ckpt"], "resume: the checkpoint gone.ckpt does not exist")
        refused([*TUNED, "--resume", "text.ckpt"], "resume: text.ckpt is no state of a fine-tuning")
        refused([*TUNED, "--resume", "other.ckpt"], "resume: other.ckpt is no state of a fine-tuning")
        refused([*TUNED, *state, "--seed", "1"], "is of another run: its option seed differs")
        refused([*TUNED, *state, "--ffn_bypass.rank", "3"], "is of another run: its option ffn_bypass differs")
    text_file_before = text_file.read_text()
    try:
        text_file.write_text(text_file_before[500:])  # of the same name
        refused([*TUNED, *state], "is of another run: its calibration tokens differs")
    finally:
        text_file.write_text(text_file_before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--finetune.trainer.strategy", "nope"], "finetune.trainer: "),
        (["--finetune.trainer.precision", "3-true"], "finetune.trainer.precision"),
        (["--finetune.trainer.devices", "0"], "finetune.trainer"),
        (["--finetune.trainer.profiler", "fastest"], "finetune.trainer"),
        (["--finetune.trainer.val_check_interval", "1.5"], "finetune.trainer"),
    ],
)
def test_options_of_the_trainer_are_checked_before_the_model_is_loaded(common, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(api, "model_of", lambda options: pytest.fail("the model was loaded"))
    assert main([*common, *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"subfit compress: error: {message}"), line


def test_a_disk_that_fills_up_at_the_end_keeps_the_closed_form_result(common, monkeypatch, capsys):
    from subfit.model import checkpoint

    plain = checkpoint.verify
    calls = []

    def verify(*args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        plain(*args)

    monkeypatch.setattr(checkpoint, "verify", verify)
    assert main([*common, *TUNED, "--output", "out"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; what was there is kept; the closed-form result is in out" in line
    load("out", verify=True)
