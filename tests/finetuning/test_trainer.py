"""Arguments of the Trainer, optimisers and schedules, from Python, YAML and the command line."""

import csv
import inspect
import json

import lightning
import pytest
import torch
import yaml
from conftest import recipe, tiny_model, tiny_tokens

from subfit import api
from subfit.cli.main import main
from subfit.errors import SubFitError
from subfit.finetuning.settings import OWNED, TRAINER, FineTuning
from subfit.finetuning.trainer import check_settings
from subfit.pipeline import compress_model
from subfit.registry import plain

SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}
STEPS = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}


class Rates(lightning.Callback):
    """Remembers the optimiser and its learning rates."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.optimizer, self.trainer = optimizer, trainer
        self.rates.append(optimizer.param_groups[0]["lr"])


def tuned(**given):
    """The record of a fine-tuning in three steps, and what was seen of it."""
    seen = Rates()
    trainer = {"max_steps": 3, "val_check_interval": 1, "callbacks": [seen], **given.pop("trainer", {})}
    settings = FineTuning(trainer=trainer, **given)
    result = compress_model(tiny_model(), tiny_tokens(20, 16), recipe(sparsity=0.5, finetune=settings))
    return result.record["finetune"], seen


@pytest.mark.parametrize("optimizer", [SGD, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5)])
@pytest.mark.parametrize("schedule", [STEPS, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)])
def test_optimiser_and_schedule_are_plain_data_or_functions(optimizer, schedule):
    record, seen = tuned(optimizer=optimizer, lr_scheduler=schedule, learning_rate=0.1, weight_decay=0.0)
    assert record["stopped"] is None and isinstance(seen.optimizer, torch.optim.SGD)
    assert seen.optimizer.defaults["momentum"] == 0.5 and seen.rates == pytest.approx([0.1, 0.05, 0.025])


def test_an_optimiser_takes_the_learning_rate_and_the_decay_unless_it_has_its_own():
    given = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.3}}
    _, seen = tuned(optimizer=given, learning_rate=0.01, weight_decay=0.1, lr_scheduler=STEPS)
    assert seen.optimizer.defaults["weight_decay"] == 0.3 and seen.rates[0] == 0.01
    _, seen = tuned(optimizer="torch.optim.Adam", learning_rate=0.01, weight_decay=0.1, lr_scheduler=STEPS)
    assert seen.optimizer.defaults["weight_decay"] == 0.1
    _, seen = tuned(optimizer=torch.optim.Adam, learning_rate=0.01, weight_decay=0.1, lr_scheduler=STEPS)
    assert seen.optimizer.defaults["weight_decay"] == 0.1 and seen.rates[0] == 0.01
    _, seen = tuned(learning_rate=0.01, weight_decay=0.1)
    assert isinstance(seen.optimizer, torch.optim.AdamW) and seen.optimizer.defaults["weight_decay"] == 0.1


def adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.03)


def test_a_function_is_also_given_by_its_path_which_the_record_has_of_it():
    written = plain(FineTuning(optimizer=adam))["optimizer"]
    assert written == f"{adam.__module__}.adam"
    record, seen = tuned(optimizer=written, lr_scheduler=STEPS)
    assert record["stopped"] is None and seen.rates[0] == 0.03


def test_a_schedule_can_follow_the_divergence():
    """Nothing is an improvement by so much: each evaluation after the first lowers the learning rate."""
    options = {"monitor": "validation/kl", "patience": 0, "threshold": 1e6, "threshold_mode": "abs"}
    given = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": options}
    record, seen = tuned(lr_scheduler=given, learning_rate=0.01, trainer={"max_steps": 7, "val_check_interval": 2})
    assert record["stopped"] is None and seen.rates == pytest.approx([0.01] * 4 + [0.001] * 2 + [0.0001])


def test_any_other_argument_of_the_trainer_reaches_it():
    seen, other = Rates(), {"class_path": "lightning.pytorch.callbacks.LambdaCallback"}
    flags = {"profiler": "simple", "limit_val_batches": 1, "gradient_clip_algorithm": "value", "log_every_n_steps": 2}
    tuned(trainer={"callbacks": [seen, other], **flags})
    trainer = seen.trainer
    assert trainer.limit_val_batches == 1 and trainer.gradient_clip_algorithm.value == "value"
    assert type(trainer.profiler).__name__ == "SimpleProfiler" and trainer.log_every_n_steps == 2
    assert any(type(callback).__name__ == "LambdaCallback" for callback in trainer.callbacks)


def test_a_checkpoint_of_the_users_own_can_be_kept(tmp_path):
    own = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "mine")}}
    assert tuned(trainer={"callbacks": own})[0]["stopped"] is None
    assert list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"trainer": {"accelerator": "cpu"}},
            "finetune.trainer: accelerator is set by SubFit: it follows the option device",
        ),
        ({"trainer": {"logger": True}}, "logger is set by SubFit: use the option logger"),
        ({"trainer": {"max_step": 3}}, "Lightning's Trainer has no argument 'max_step'; did you mean 'max_steps'?"),
        ({"trainer": {"precision": "3"}}, "finetune.trainer.precision: "),
        ({"trainer": {"callbacks": [{"class_path": "lightning.Nothing"}]}}, "finetune.trainer.callbacks: "),
        ({"trainer": {"max_steps": "many"}}, "max_steps is many; it must be a whole number of at least 1"),
        ({"trainer": {"devices": 3}}, "batch_size is 4; 3 processes cannot share it equally"),
        ({"trainer": {"num_nodes": 2}}, "num_nodes is 2; no launcher, such as torchrun, has started them"),
        ({"optimizer": {"class_path": "torch.optim.Nothing"}}, "finetune.optimizer: .*torch.optim.Nothing"),
        ({"optimizer": {**SGD, "init_args": {"momentums": 1}}}, "finetune.optimizer: Option 'momentums' is not accepted"),
        ({"lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR"}}, "finetune.lr_scheduler: .*step_size"),
        ({"losses": {"nowhere.mine": 1.0}}, "finetune.losses: nowhere.mine is no function"),
        ({"lora": {"layers": 5}}, "layers is 5; the model has 4"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_any_work(given, message, model_folder, text_file, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("it has begun to work")

    monkeypatch.setattr(
        "subfit.pipeline.score_sites" if "lora" in given else "subfit.api.model_of", work
    )  # LoRA is the model's
    with pytest.raises(SubFitError, match=message) as raised:
        api.compress(model=str(model_folder), calibration={"path": str(text_file), "windows": 4}, finetune=given)
    assert "\n" not in str(raised.value)


def test_objects_are_checked_and_kept():
    seen, monitor = Rates(), {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    settings = FineTuning(trainer={"callbacks": [seen, monitor]})
    check_settings(settings, torch.device("cpu"))
    assert settings.trainer["callbacks"][1] is monitor and list(monitor) == ["class_path"]
    assert settings.trainer["callbacks"][0] is seen and settings.trainer["max_steps"] == 200


def test_settings_as_they_were_recorded_before_keep_their_meaning():
    flags = {"max_steps": 6, "val_check_interval": 3, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    flags |= {"precision": "32-true", "devices": 1, "strategy": "auto", "log_every_n_steps": 1}
    losses = {"kl": 1.0, "stream": 0.0, "next_token": 0.0, "patience": None, "gradient_checkpointing": False, "lora": None}
    record, seen = tuned(trainer=flags, learning_rate=0.001, weight_decay=0.0, warmup=0.05, batch_size=4, **losses)
    assert [point["step"] for point in record["curve"]] == [0, 3, 6] and seen.trainer.accumulate_grad_batches == 2
    assert isinstance(seen.optimizer, torch.optim.AdamW) and seen.trainer.gradient_clip_val == 1.0
    assert FineTuning(trainer=flags) == FineTuning(
        trainer={"max_steps": 6, "val_check_interval": 3, "accumulate_grad_batches": 2}
    )


def test_the_documentation_names_what_subfit_sets_itself():
    known = inspect.signature(lightning.Trainer).parameters
    assert all(name in known and name in FineTuning.__doc__ for name in OWNED)
    assert all(name in known for name in TRAINER)


def test_from_a_file_and_the_command_line(model_folder, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = {"path": str(text_file), "windows": 12, "length": 32}
    monitor = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor", "init_args": {"logging_interval": "step"}}
    finetune = {"trainer": {"max_steps": 2, "callbacks": [monitor]}, "optimizer": SGD, "lr_scheduler": STEPS}
    options = {"model": str(model_folder), "calibration": data, "finetune": finetune, "logger": "csv"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    command = ["compress", "--config", "run.yaml", "--output", "out", "--json", "--finetune.trainer.max_steps", "4"]
    assert main([*command, "--finetune.learning_rate", "0.5", "--finetune.trainer.limit_val_batches", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    written = record["configuration"]["finetune"]
    assert written["trainer"]["limit_val_batches"] == 1 and written["trainer"]["gradient_clip_val"] == 1.0
    assert written["trainer"]["callbacks"] == [monitor] and written["optimizer"] == SGD
    rows = csv.DictReader((tmp_path / "out.run" / "metrics.csv").read_text().splitlines())
    rates = [float(row["lr-SGD"]) for row in rows if row.get("lr-SGD")]
    assert rates == pytest.approx([0.5, 0.25, 0.125, 0.0625])
