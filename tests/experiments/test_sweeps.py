"""The sweep files for Weights & Biases: one cell of each is run, as an agent would run it."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import yaml
from forked import run

SWEEPS = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"))
SMALL = ["--calibration.windows", "6", "--calibration.length", "32", "--evaluation.windows", "2", "--dtype", "auto"]


def drawn(parameter):
    """A value that a parameter of a sweep may take."""
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return parameter["values"][-1]
    low, high = parameter["min"], parameter["max"]
    return math.sqrt(low * high) if parameter["distribution"].startswith("log_uniform") else (low + high) / 2


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_cell_runs_as_an_agent_runs_it(path, tmp_path, model_folder, text_file):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["method"] == path.stem and sweep["metric"]["goal"] == "minimize"
    (tmp_path / "experiments").symlink_to(path.parents[1])
    for name in ("valid.txt", "test.txt"):
        (tmp_path / name).write_text(text_file.read_text())
    chosen = {name: drawn(parameter) for name, parameter in sweep["parameters"].items()}
    (tmp_path / "args.json").write_text(json.dumps(chosen))
    program, *rest = [str(tmp_path / "args.json") if part == "${args_json_file}" else part for part in sweep["command"]]
    assert program == "subfit" and "${" not in " ".join(rest)
    here = ["--model", str(model_folder), *SMALL, "--sparsity", "0.5", "--json"]
    command = [sys.executable, "-m", "subfit.cli", *rest, *here]
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = run(command, tmp_path, env)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    value = record
    for key in sweep["metric"]["name"].split("."):
        value = value[key]
    assert value > 0
    for name, wanted in chosen.items():
        found = record["configuration"]
        for key in name.split("."):
            found = found[key]
        if name != "sparsity":
            assert (found["class_path"] if isinstance(found, dict) else found) == wanted, name
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
