"""Processes that torchrun starts share the calibration, and find what one process finds."""

import json
import os
import sys
from pathlib import Path

import pytest
import shares
import torch
from forked import run

from subfit import compress
from subfit.cli.main import main
from subfit.errors import SubFitError
from subfit.model import processes
from subfit.model.loading import load

TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes, and one alone, has made of each recipe."""
    folder = tmp_path_factory.mktemp("shares")
    script, env = str(Path(__file__).parents[1].joinpath("shares.py")), {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *TORCHRUN, script, str(folder)]
    done = run(command, folder, env)
    assert done.returncode == 0, done.stderr
    shares.main(str(folder))
    return {name: torch.load(folder / name, weights_only=False) for name in ("0", "1", "alone")}


@pytest.mark.parametrize("name", [*shares.RECIPES, *shares.DIVIDED, "fine-tuned, divided"])
def test_two_processes_find_what_one_finds(found, name):
    first, second, alone = (found[who][name] for who in ("0", "1", "alone"))
    curves = [one["record"].pop("finetune", {}) for one in (first, second, alone)]
    assert all(curve.get("kept", "fine-tuned") == "fine-tuned" for curve in curves)
    kl = [[point["kl"] for point in curve.get("curve", ())] for curve in curves]
    assert kl[0] == kl[1] == pytest.approx(kl[2], rel=1e-6)
    assert first["record"] == second["record"]
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert "divided" in name or first["held"] == alone["held"]
    assert name != "the paper's, divided" or first["held"] < 0.7 * alone["held"]  # what is new is whole
    assert first["record"]["selected"] == alone["record"]["selected"]
    assert first["record"]["evaluation"]["kl"] == pytest.approx(alone["record"]["evaluation"]["kl"], rel=1e-5)
    assert first["record"]["scores"] == pytest.approx(alone["record"]["scores"], rel=1e-6)
    for key, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-5, atol=1e-8)


def test_from_the_command_line(model_folder, text_file, tmp_path):
    small = ["--fsdp", "true", "--calibration.windows", 6, "--calibration.length", 32, "--evaluation.windows", 2]
    given = ["--model", model_folder, "--calibration.path", text_file, *small, "--output", "out", "--json"]
    command = [sys.executable, "-m", *TORCHRUN, "-m", "subfit.cli", "compress", *map(str, given)]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "compression.json").read_text())
    model, _ = load(str(tmp_path / "out"))
    assert model(torch.ones(1, 4, dtype=torch.long)).logits.isfinite().all()


def test_one_process_has_nobody_to_divide_a_model_with(model_folder):
    with pytest.raises(SubFitError, match="several processes: torchrun"):
        compress(model=str(model_folder), fsdp=True)


@pytest.mark.parametrize("where", [["disk"], ["auto", "--max_memory", "8GB"]])
def test_weights_that_are_sharded_are_not_on_the_disk(model_folder, where, capsys):
    assert main(["compress", "--model", str(model_folder), "--fsdp", "true", "--device_map", *where]) == 2
    said = "fsdp has the weights on the devices of all processes; leave out device_map"
    assert capsys.readouterr().err == f"subfit compress: error: {said}\n"


def test_every_process_needs_a_window(monkeypatch):
    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    assert processes.shard_tokens(torch.arange(7)).tolist() == [5, 6]
    with pytest.raises(SubFitError, match="2 windows for 3 processes: each needs at least one window"):
        processes.shard_tokens(torch.arange(2))
