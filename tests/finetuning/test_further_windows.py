"""Fine-tuning on further windows of the calibration's sources, of which none is calibrated or evaluated on."""

import json

import lightning
import pytest
import torch
import yaml
from conftest import recipe, tiny_model, tiny_tokens, without_minutes

from subfit import api
from subfit.ablation import shared_state
from subfit.ablation.runner import ablate
from subfit.errors import SubFitError
from subfit.finetuning.settings import FineTuning
from subfit.model.digests import tensor_digest
from subfit.pipeline import compress_model


class Batches(lightning.Callback):
    """Remembers the windows that are trained on and those that are judged by."""

    def __init__(self):
        self.trained, self.judged = [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.trained += batch.tolist()

    def on_validation_batch_start(self, trainer, module, batch, index):
        self.judged += batch.tolist()


def options(model_folder, text_file, **finetune):
    data = {"path": str(text_file), "windows": 6, "length": 32}
    trainer = {"max_steps": 2, "val_check_interval": 2, **finetune.pop("trainer", {})}
    found = {"model": str(model_folder), "sparsity": 0.5, "calibration": data, "evaluation": {"windows": 2}}
    return found | {"finetune": {"trainer": trainer, **finetune}}


def test_each_window_is_trained_on_once_and_every_tenth_is_judged_by():
    seen, training = Batches(), tiny_tokens(20, 16, seed=1)
    trainer = {"max_steps": 9, "val_check_interval": 9, "callbacks": [seen]}
    made = recipe(sparsity=0.5, finetune=FineTuning(trainer=trainer, batch_size=2, windows=20))
    record = compress_model(tiny_model(), tiny_tokens(6, 16), made, training=training).record["finetune"]
    assert record["stopped"] is None
    held_out, others = training[::10].tolist(), [window for i, window in enumerate(training.tolist()) if i % 10]
    assert sorted(seen.trained) == sorted(others) and seen.judged == held_out * 2
    with pytest.raises(SubFitError, match="finetune.windows is 20; give these tokens, too"):
        compress_model(tiny_model(), tiny_tokens(6, 16), made)


@pytest.mark.parametrize("lora", [None, {"layers": 4}])
def test_the_fit_is_that_without_them_and_the_record_names_them(lora, model_folder, text_file, monkeypatch):
    used = []
    compress = api.compress_model

    def see(model, tokens, *args, training, evaluation, **given):
        used.append((tokens, evaluation, training))
        return compress(model, tokens, *args, training=training, evaluation=evaluation, **given)

    monkeypatch.setattr(api, "compress_model", see)
    records = [
        api.compress(**options(model_folder, text_file, windows=windows, lora=lora, learning_rate=0.01)).record
        for windows in (None, 12)
    ]
    (tokens, evaluation, training) = used[1]
    assert torch.equal(torch.cat(used[0][:2]), torch.cat(used[1][:2])) and used[0][2] is None
    assert len({tuple(window) for part in used[1] for window in part.tolist()}) == 6 + 2 + 12
    described = records[1]["training_tokens"]
    assert described == {"shape": [12, 32], "sha256": tensor_digest(training), "files": [str(text_file)]}
    assert records[1]["evaluation_tokens"] == {**records[0]["evaluation_tokens"], "in_training": 0}
    for key in ("calibration_tokens", "scores", "selected", "explained_variance"):
        assert records[0][key] == records[1][key], key
    assert "training_tokens" not in records[0] and records[1]["configuration"]["finetune"]["windows"] == 12
    assert (
        records[0]["finetune"]["kl_before"] != records[1]["finetune"]["kl_before"] and not records[1]["finetune"]["stopped"]
    )


def test_an_evaluation_on_training_windows_is_warned_of(model_folder, text_file, caplog):
    given = options(model_folder, text_file, windows=12)
    evaluation = {"path": str(text_file), "windows": 10, "length": 32}
    record = api.compress(**{**given, "evaluation": evaluation}).record
    assert {name: record["evaluation_tokens"][f"in_{name}"] for name in ("calibration", "training")} == {
        "calibration": 6,
        "training": 4,
    }
    assert [line.partition(":")[2].partition(":")[0] for line in caplog.messages] == [
        " 6 of 10 windows are among those of the calibration",
        " 4 of 10 windows are among those of the training",
    ]


def test_too_little_text_is_one_line_before_any_work(subfit, model_folder, text_file):
    common = (
        f"compress --model {model_folder} --calibration.path {text_file} --calibration.windows 6 --calibration.length 32"
    )
    done = subfit(*common.split(), "--calibration.source", "self+text", "--finetune.windows", "9000", "--output", "out")
    assert done.returncode == 2 and "windows of text" not in done.stderr and "scoring" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "holds" in line]
    assert "(equal ones once); 4511 windows were asked for" in line  # 3 + 8 + 4500
    done = subfit(*common.split(), "--finetune.windows", "1")
    assert done.returncode == 2 and "finetune: windows is 1; one is needed to train on, and one to judge by" in done.stderr


def test_a_run_goes_on_with_the_same_windows_only(model_folder, text_file, tmp_path):
    given = options(model_folder, text_file, windows=12, trainer={"max_steps": 4})
    whole = api.compress(**given, output=str(tmp_path / "whole"), logger="csv")
    last = str(tmp_path / "whole.run" / "last.ckpt")
    again = api.compress(**given, output=str(tmp_path / "again"), resume=last)
    assert again.record["finetune"] == whole.record["finetune"]
    for windows in (None, 13):
        other = {**given, "finetune": {**given["finetune"], "windows": windows}}
        with pytest.raises(SubFitError, match="is of another run: its training tokens differs"):
            api.compress(**other, resume=last)


def test_cells_of_an_ablation_share_them(model_folder, text_file, tmp_path, monkeypatch):
    """They are read once for each number of windows, in whatever order the cells are; each is as a run by itself."""
    read = []
    tokens_of = shared_state.tokens_of
    monkeypatch.setattr(shared_state, "tokens_of", lambda *args: read.append(args) or tokens_of(*args))
    axes = {"finetune.learning_rate": [1e-3, 1e-2], "finetune.windows": [None, 8, 12]}
    content = {"options": options(model_folder, text_file), "axes": axes}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    rows = ablate(str(tmp_path / "grid.yaml"), str(tmp_path / "out"))
    assert [row["status"] for row in rows] == ["done"] * 6 and len(read) == 3
    assert len({json.dumps(row["calibration_tokens"]) for row in rows}) == 1
    shapes = [row["training_tokens"]["shape"][0] if "training_tokens" in row else None for row in rows]
    assert shapes == [row["values"]["finetune.windows"] for row in rows]
    alone = api.compress(**options(model_folder, text_file, windows=12, learning_rate=1e-2)).record
    (row,) = [row for row in rows if row["values"] == {"finetune.learning_rate": 1e-2, "finetune.windows": 12}]
    assert without_minutes(row["finetune"]) == without_minutes(alone["finetune"])
    assert row["training_tokens"] == alone["training_tokens"]
