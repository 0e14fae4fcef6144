"""What a compression costs is measured, and leaves the model as it was."""

import copy
import json

import pytest
import torch
from conftest import recipe, tiny_model, tiny_tokens

from subfit.benchmarking.compression_cost import compression_cost
from subfit.cli.main import main

WIDTH = 32  # of the tiny Llama


def test_what_a_compression_costs_is_measured(model_folder, tmp_path, capsys):
    none, windows = ["--prompt_lengths", "--contexts"], ["--calibration_windows", "8", "32", "--calibration_length", "64"]
    given = [*none, *windows, "--output", str(tmp_path / "cost")]
    assert main(["benchmark", "--random_weights", str(model_folder), *given]) == 0
    shown = capsys.readouterr().out
    assert "32 x 64" in shown and "ideal" not in shown
    less, more = json.loads((tmp_path / "cost" / "benchmark.json").read_text())["compression"]
    assert (less["windows"], more["windows"], more["length"]) == (8, 32, 64)
    assert set(more["seconds"]) == {"forward", "score", "select", "fit"}
    assert more["forwards"] >= (more["seconds"]["score"] + more["seconds"]["fit"]) / more["seconds"]["forward"]


def test_a_compression_that_was_timed_leaves_the_model_as_it_was_and_its_memory_grows_by_the_stream():
    dense = tiny_model()
    before = copy.deepcopy(dense.state_dict())
    half, whole = (compression_cost(dense, tiny_tokens(n, 64), recipe(sparsity=0.5))["peak_bytes"] for n in (64, 128))
    assert whole - half == pytest.approx(64 * 64 * WIDTH * 4, rel=0.2)  # the stream of 64 windows
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert len(before) == len(dense.state_dict())
