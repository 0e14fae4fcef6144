import copy
import csv
import json
import os
import sys
from pathlib import Path

import ddp
import pytest
import torch
from conftest import FAMILIES, Given, recipe, tiny_model, tiny_tokens, without_minutes
from forked import run
from lightning.pytorch.loggers import CSVLogger

from subfit.ablation.shared_state import SharedState
from subfit.calibration.capture import Calibration
from subfit.config import resolve
from subfit.errors import SubFitError
from subfit.finetuning.distillation import Distillation
from subfit.finetuning.optimization import warmup_cosine
from subfit.finetuning.settings import FineTuning, LoRA
from subfit.model.replacing import switched_off
from subfit.pipeline import compress_model, fit_recipe
from subfit.tracking.loggers import Log

TRAINABLE = [
    "mean",
    "scalar",
    "diagonal",
    "linear",
    "low_rank",
    "low_rank_diagonal",
    "shared_low_rank",
    "mlp",
    "linear_patch",
]


def settings(steps: int = 20, interval: int = 5, **given) -> FineTuning:
    flags = {name: given.pop(name) for name in ("precision", "accumulate_grad_batches", "callbacks") if name in given}
    return FineTuning(
        trainer={"max_steps": steps, "val_check_interval": interval, **flags}, **{"learning_rate": 1e-3, **given}
    )


def tuned(finetune: FineTuning, log: Log | None = None, dtype=torch.float32, family="llama", **given):
    """A tiny model with zeros and small bypasses in the place of half of its sites, fine-tuned on repeated text."""
    torch.manual_seed(3)
    defaults = {"sparsity": 0.5, "attention_bypass": "low_rank", "ffn_bypass": "shared_low_rank"}
    tokens = tiny_tokens(40, 32)
    return compress_model(tiny_model(family).to(dtype), tokens, recipe(**defaults | given, finetune=finetune), log=log)


def weights(compression) -> list[torch.Tensor]:
    return list(compression.model.state_dict().values())


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_divergence_falls_and_only_the_bypasses_change(family, spoilt):
    after = tuned(settings(), family=family)
    record = after.record["finetune"]
    assert record["kept"] == "fine-tuned" and record["kl_after"] < 0.97 * record["kl_before"] and not record["stopped"]
    assert [point["step"] for point in record["curve"]] == [0, 5, 10, 15, 20]
    assert record["trained_parameters"] == after.record["size"]["added_parameters"]
    dense = tiny_model(family).state_dict()
    changed = [
        name for name, value in after.model.state_dict().items() if name in dense and not torch.equal(dense[name], value)
    ]
    own = [site["path"] for site in after.model.config.subfit["sites"]]
    assert all(any(name.startswith(path) for path in own) for name in changed)
    assert all(p.grad is None for p in after.model.parameters())


REFITTED = {"fitting": "sequential", "refit_kept": 0.1, "attention_bypass": "identity", "ffn_bypass": "identity"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refitted_projections_are_trained_and_the_teacher_is_dense(dtype, spoilt):
    """The only parameters of their own that dropped submodules leave; of a kept submodule, nothing else changes."""
    some = {**REFITTED, "selector": Given(["attention.1", "ffn.2"]), "dtype": dtype}
    after, fit = tuned(settings(), **some), tuned(None, **some)
    record = after.record["finetune"]
    assert record["kept"] == "fine-tuned" and record["kl_after"] < 0.97 * record["kl_before"] and not record["stopped"]
    assert after.record["size"] == fit.record["size"] and after.record["size"]["added_parameters"] == 0
    dense, found = tiny_model().to(dtype).state_dict(), after.model.state_dict()
    projections = {f"model.layers.{i}.{path}.weight" for i, path in ((1, "mlp.down_proj"), (2, "self_attn.o_proj"))}
    projections |= {f"model.layers.3.{path}.weight" for path in ("self_attn.o_proj", "mlp.down_proj")}
    assert {name for name in found if not torch.equal(found[name], dense[name])} == projections
    assert all(not torch.equal(found[name], fit.model.state_dict()[name]) for name in projections)
    assert record["trained_parameters"] == sum(dense[name].numel() for name in projections)
    pair = (tiny_model().to(dtype), after.model)
    with torch.no_grad():
        p, q = (model(tiny_tokens(40, 32)[::10]).logits[:, :-1].float().log_softmax(-1) for model in pair)
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    assert record["kl_after"] == pytest.approx(divergence, rel=1e-4 if dtype == torch.float32 else 0.05)


def test_in_bfloat16_the_master_weights_are_float32_and_the_result_is_bfloat16(spoilt):
    result = tuned(settings(), dtype=torch.bfloat16)
    assert result.record["finetune"]["kept"] == "fine-tuned"
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


def test_two_runs_are_equal_and_mixed_precision_and_recomputation_train_too(spoilt):
    one, two = tuned(settings()), tuned(settings())
    assert same(one, two) and without_minutes(one.record["finetune"]) == without_minutes(two.record["finetune"])
    assert same(one, tuned(settings(gradient_checkpointing=True)))
    assert tuned(settings(precision="bf16-mixed")).record["finetune"]["kept"] == "fine-tuned"


def test_every_loss_can_be_the_only_one(spoilt):
    for losses in ({"stream": 1.0, "kl": 0.0}, {"next_token": 1.0, "kl": 0.0}):
        curve = tuned(settings(batch_size=36, **losses)).record["finetune"]["curve"]  # all windows in each step
        assert curve[-1]["training_loss"] < curve[1]["training_loss"]


def losses(bypass: str, precise: FineTuning, family: str = "gpt2", **given):
    """The training loss of a model in float64 with two bypasses, as a function, and the module that it depends on."""
    calibration = Calibration(tiny_model(family).double(), tiny_tokens(30, 16))  # others have norms in float32
    made = recipe(selector=Given(["attention.1", "ffn.2"]), attention_bypass=bypass, ffn_bypass=bypass, **given)
    replacements, _ = fit_recipe(calibration, made)
    module = Distillation(calibration.model, replacements, precise)
    module.setup("fit")
    return module.master_weights, lambda: module._losses(tiny_tokens(2, 16, seed=1))[0]


@pytest.mark.parametrize("bypass", [*TRAINABLE, "refitted"])
def test_gradients_equal_finite_differences(bypass):
    precise = FineTuning(kl=1.0, stream=0.5, next_token=0.3)
    if bypass == "refitted":  # weights and biases
        trained, loss = losses("identity", precise, "phi", fitting="sequential", refit_kept=0.1)
    else:
        trained, loss = losses(bypass, precise)
    assert len(trained) and all(weight.dtype == torch.float64 for weight in trained)
    generator, step = torch.Generator().manual_seed(0), 1e-5
    loss().backward()
    for weight in trained:
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            weight.data += sign * step * direction
            with torch.no_grad():
                ends.append(float(loss()))
            weight.data -= sign * step * direction
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((weight.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-9)


class Killed(BaseException):
    pass


def fail_at(monkeypatch, step: int, how) -> None:
    """Makes the training step after so many do something else."""
    plain = Distillation.training_step

    def training_step(self, tokens, index):
        return how(plain(self, tokens, index)) if self.global_step == step else plain(self, tokens, index)

    monkeypatch.setattr(Distillation, "training_step", training_step)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"patience": 1, "learning_rate": 1e-30}])
def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(options, tmp_path, monkeypatch, spoilt):
    whole = tuned(settings(22, **options), Log(str(tmp_path / "whole")))
    with monkeypatch.context() as patch:

        def die(loss):
            raise Killed

        fail_at(patch, 8, die)
        with pytest.raises(Killed):
            tuned(settings(22, **options), Log(str(tmp_path / "killed")))
    last = tmp_path / "killed" / "last.ckpt"
    resumed = tuned(settings(22, **options), Log(str(tmp_path / "killed"), str(last)))
    assert same(whole, resumed)
    assert without_minutes(whole.record["finetune"]) == without_minutes(resumed.record["finetune"])
    last_step = whole.record["finetune"]["curve"][-1]["step"]
    assert last_step < 22 if "patience" in options else last_step == 22


def test_the_curve_counts_tokens_and_minutes_and_so_do_the_metrics(tmp_path, spoilt):
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1)
    log = Log(str(tmp_path))
    log.loggers.append(logger)
    curve = tuned(settings(accumulate_grad_batches=2), log).record["finetune"]["curve"]
    assert [point["tokens"] for point in curve] == [step * 2 * 4 * 32 for step in (0, 5, 10, 15, 20)]
    minutes = [point["minutes"] for point in curve]
    assert minutes[0] == 0 and minutes == sorted(minutes)
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row.get("validation/kl")]
    assert [float(row["training/tokens"]) for row in rows] == [point["tokens"] for point in curve]
    assert [float(row["training/minutes"]) for row in rows] == pytest.approx(minutes, abs=1e-4)


def test_the_checkpoint_holds_the_bypasses_alone(tmp_path, spoilt):
    record = tuned(settings(5), Log(str(tmp_path))).record["finetune"]
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert sum(value.numel() for value in content["state_dict"].values()) == record["trained_parameters"]


def test_it_never_ends_worse_than_it_began(capsys):
    result = tuned(settings(learning_rate=1.0))
    record = result.record["finetune"]
    assert record["kept"] == "closed-form" and record["step"] == 0 and record["kl_after"] == record["kl_before"]
    assert record["kl_before"] < min(point["kl"] for point in record["curve"][1:])
    assert same(result, tuned(None)) and "closed-form fit is kept" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_that_is_no_number_ends_training_and_the_best_so_far_is_kept(dtype, monkeypatch, capsys, spoilt):
    plain = Distillation._losses

    def diverge(self, tokens):
        loss, terms = plain(self, tokens)
        return loss * (float("nan") if self.trainer.training and self.global_step == self.fails else 1.0), terms

    monkeypatch.setattr(Distillation, "_losses", diverge)
    monkeypatch.setattr(Distillation, "fails", 12, raising=False)
    late = tuned(settings(), dtype=dtype)
    assert late.record["finetune"]["step"] == 10 and "step 13 is nan" in late.record["finetune"]["stopped"]
    monkeypatch.setattr(Distillation, "fails", 0)
    early = tuned(settings(), dtype=dtype)
    assert early.record["finetune"]["kept"] == "closed-form" and "learning_rate" in capsys.readouterr().err
    assert same(early, tuned(None, dtype=dtype))


def test_an_exploding_step_is_caught(monkeypatch, spoilt):
    fail_at(monkeypatch, 7, lambda loss: loss * 1e300 * 1e300)
    record = tuned(settings()).record["finetune"]
    assert record["step"] == 5 and "gradient of step 8" in record["stopped"]


def test_a_full_disk_ends_training_and_the_best_so_far_is_kept(tmp_path, monkeypatch, spoilt):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def full(self, trainer, path):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(ModelCheckpoint, "_save_checkpoint", full)
    record = tuned(settings(), Log(str(tmp_path))).record["finetune"]
    assert "No space left" in record["stopped"] and record["step"] == 5


@pytest.mark.parametrize(
    ("what", "changes"),
    [("selection", {"sparsity": 0.25}), ("bypasses", {"attention_bypass": "linear"}), ("model", {"family": "mistral"})],
)
def test_a_checkpoint_of_another_run_is_refused(what, changes, tmp_path):
    tuned(settings(5), Log(str(tmp_path)))
    with pytest.raises(SubFitError, match=f"its {what} differs"):
        tuned(settings(5), Log(None, str(tmp_path / "last.ckpt")), **changes)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(SubFitError, match="last.ckpt is no state of a fine-tuning"):
        tuned(settings(5), Log(None, str(tmp_path / "last.ckpt")))


def test_too_few_windows_and_nothing_to_train_leave_the_fit():
    few = compress_model(tiny_model(), tiny_tokens(1, 32), recipe(finetune=settings()))
    assert "1 windows; fine-tuning needs" in few.record["finetune"]["stopped"]
    nothing = tuned(settings(), attention_bypass="identity", ffn_bypass="identity")
    assert "nothing to fine-tune" in nothing.record["finetune"]["stopped"]
    assert same(nothing, tuned(None, attention_bypass="identity", ffn_bypass="identity"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kl": 0.0}, "weights"),
        ({"stream": -1.0}, "weights"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"trainer": {"max_steps": 0}}, "max_steps is 0"),
        ({"trainer": {"limit_val_batches": 0.0}}, "limit_val_batches is 0"),
        ({"trainer": {"gradient_clip_val": -1}}, "gradient_clip_val is -1; it must not be negative"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must not be negative"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lora": {"rank": 0}}, "layers and rank must be at least 1"),
        ({"lora": {"rank": "8"}}, "rank is '8'; it must be a whole number"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; it must be a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(given, message):
    with pytest.raises(SubFitError, match=message):
        FineTuning(**given | ({"lora": LoRA(**given["lora"])} if "lora" in given else {}))


def test_the_learning_rate_rises_and_falls_to_nothing():
    rates = [warmup_cosine(step, 100, 0.1) for step in range(101)]
    assert max(rates) == rates[10] == 1 and rates[0] < rates[5] < 1 and rates[100] == pytest.approx(0, abs=1e-12)


def test_the_model_is_dense_again_when_all_is_switched_off(spoilt):
    """What training did to the stand-ins leaves no trace in the modules that they stand for."""
    calibration = Calibration(tiny_model(), tiny_tokens(20, 16))
    dense = copy.deepcopy(calibration.model.state_dict())
    from subfit.finetuning.fine_tune import fine_tune

    replacements, _ = fit_recipe(calibration, recipe(sparsity=0.5))
    fine_tune(calibration, replacements, settings(3), Log())
    with switched_off(replacements):
        assert all(torch.equal(dense[name], value) for name, value in calibration.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_the_last_layers_are_trained_and_merged(spoilt, dtype):
    """What is kept is a model without adapters, whose divergence is as low as with them."""
    some = {"dtype": dtype, "selector": Given(["attention.0", "ffn.0", "attention.2", "ffn.3"])}
    without = tuned(settings(learning_rate=1e-3), **some)
    result = tuned(settings(learning_rate=1e-3, lora=LoRA(layers=2, rank=3)), **some)
    record, other = result.record["finetune"], without.record["finetune"]
    assert record["kept"] == "fine-tuned" and record["kl_after"] < record["kl_before"]
    assert record["curve"][-1]["training_loss"] < other["curve"][-1]["training_loss"]
    lowest = min(point["kl"] for point in record["curve"])
    assert record["kl_after"] == pytest.approx(lowest, rel=1e-5 if dtype == torch.float32 else 0.05)
    assert record["trained_parameters"] > other["trained_parameters"]
    assert result.record["size"] == without.record["size"]
    dense, found = tiny_model().to(dtype).state_dict(), result.model.state_dict()
    assert found.keys() == without.model.state_dict().keys()
    sites = tuple(f"{site['path']}." for site in result.model.config.subfit["sites"])
    kept = [name for name in dense if name in found and not name.startswith(sites)]
    changed = {name for name in kept if not torch.equal(dense[name], found[name])}
    assert changed == {name for name in kept if name.endswith("_proj.weight") and name.split(".")[2] in "23"} and changed


def test_adapters_that_gain_nothing_leave_no_trace(tmp_path):
    some = {"selector": Given(["attention.0", "ffn.3"])}
    result = tuned(settings(4, 2, learning_rate=100.0, lora=LoRA(layers=1)), **some)
    assert result.record["finetune"]["kept"] == "closed-form" and same(result, tuned(None, **some))
    with pytest.raises(SubFitError, match="layers is 5; the model has 4"):
        tuned(settings(4, lora=LoRA(layers=5)), **some)
    none_kept = {"selector": Given(["attention.3", "ffn.3"])}  # which is known after the fit only: it is not lost
    result = tuned(settings(4, lora=LoRA(layers=1)), **none_kept)
    assert "no linear map is kept in the last 1 layers" in result.record["finetune"]["stopped"]
    assert same(result, tuned(None, **none_kept))


def test_a_cell_of_an_ablation_is_fine_tuned_and_the_model_dense_again(tmp_path, model_folder, text_file):
    cell = {"model": str(model_folder), "calibration": {"path": str(text_file), "windows": 12, "length": 32}}
    trained = {**cell, "finetune": {"trainer": {"max_steps": 2}, "lora": {"layers": 4}}}
    session = SharedState(tmp_path / "cache", {})
    plain, one, again = (session.run(resolve(given)) for given in (cell, trained, cell))
    assert len(one["finetune"]["curve"]) == 2 and "finetune" not in plain
    assert plain["texts"] == again["texts"]


def test_from_the_command_line(subfit, model_folder, text_file, tmp_path):
    """All options reach it, and a run that goes on from a checkpoint gives the same model as the whole one."""
    common = (
        f"compress --model {model_folder} --calibration.path {text_file} --calibration.windows 12 --calibration.length 32"
    )
    trained = (
        f"{common} --finetune.trainer.max_steps 4 --finetune.trainer.val_check_interval 2 --finetune.learning_rate 1e-5"
    )
    done = subfit(*trained.split(), "--output", "whole", "--logger", "csv", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["configuration"]["finetune"]["trainer"]["max_steps"] == 4
    assert "fine-tuning: " in done.stderr and ", loss " in done.stderr
    assert [point["step"] for point in record["finetune"]["curve"]] == [0, 2, 4] and record["seconds"]["finetune"] > 0
    assert len((tmp_path / "whole.run" / "sites.csv").read_text().splitlines()) == 1 + 8
    assert "training/loss" in (tmp_path / "whole.run" / "metrics.csv").read_text()
    again = subfit(*trained.split(), "--output", "again", "--resume", "whole.run/last.ckpt", "--json")
    assert json.loads(again.stdout)["finetune"] == record["finetune"]
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert one == two


def test_two_processes_have_the_gradients_of_one(tmp_path, monkeypatch):
    """DDP by gloo on the CPU, each with half of every batch."""
    script, env = str(Path(__file__).parents[1].joinpath("ddp.py")), {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [sys.executable, "-m", *torchrun, script, str(tmp_path / "2"), "2"]
    done = run(command, tmp_path, env)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(Distillation, "on_before_optimizer_step", None)  # which the script sets, for good
    ddp.main(str(tmp_path / "1"), 1)
    one, two = (torch.load(tmp_path / name) for name in ("1", "2"))
    assert len(one["gradients"]) == len(two["gradients"]) > 3
    for alone, together in zip(one["gradients"], two["gradients"], strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-12)
    assert one["curve"] == pytest.approx(two["curve"], rel=1e-6)
