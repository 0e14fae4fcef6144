"""The embedded real model, end to end."""

import json
import os
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics  # some hundred pages of English that every Python has

import numpy as np
import pytest
import torch
from conftest import recipe
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from subfit.calibration.capture import Calibration
from subfit.calibration.data import read_tokens
from subfit.calibration.settings import Data
from subfit.fitting.one_shot import fit_one_shot
from subfit.model.loading import load
from subfit.pipeline import compress_model

pytestmark = pytest.mark.real
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def real(all_cores, tmp_path_factory):
    """SmolLM2-135M-Instruct in float32, its tokenizer, and windows of a real text; on all cores."""
    model, tokenizer = load("smollm2-135m", dtype="float32")
    text = tmp_path_factory.mktemp("texts") / "python.txt"
    text.write_text("\n\n".join(topics.values()))
    tokens, *_ = read_tokens(Data(path=str(text), windows=24, length=256), model, tokenizer, 0)
    return model, tokenizer, tokens


def test_it_knows_the_capital_of_france(real):
    model, tokenizer, _ = real
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0])


def test_a_fit_equals_least_squares_on_the_stored_pairs(real):
    model, _, tokens = real
    calibration = Calibration(model, tokens[:8])
    site = next(site for site in calibration.sites if site.name == "ffn.2")
    linear = recipe(ffn_bypass={"class_path": "linear", "init_args": {"ridge": 0.0}}).ffn_bypass
    (found,) = fit_one_shot(calibration, {site: linear})
    pairs = []
    calibration.watch_sites([site], "store", lambda _, seen: pairs.append((seen.x.clone(), seen.y.clone())))
    x, y = (torch.cat(parts).flatten(0, 1).double().numpy() for parts in zip(*pairs, strict=True))
    design = np.c_[x, np.ones(len(x))]
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    weight = np.r_[found.bypass.weight.double().T.numpy(), found.bypass.bias.double().numpy()[None]]
    assert np.linalg.norm(design @ weight - design @ expected) < 1e-6 * np.linalg.norm(design @ expected)
    assert np.linalg.norm(weight - expected) < 1e-6 * np.linalg.norm(expected)


def test_the_paper_passes_the_layers_few_times_and_spares_the_massive_activations(real, monkeypatch):
    """Once to score, once to fit, and no further than the last submodule that is replaced; the seconds are a benchmark's."""
    model, _, tokens = real
    forward, passed = LlamaDecoderLayer.forward, Counter()

    def counted(layer, hidden, *args, **kwargs):
        passed[layer] += hidden.shape[:-1].numel()
        return forward(layer, hidden, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    result = compress_model(model, tokens, recipe())  # in place: the last test that uses the dense model
    assert max(passed.values()) < 2.2 * tokens.numel()
    scores = {name: score for name, score in result.record["scores"].items() if name.startswith("ffn")}
    spared = sorted(scores, key=scores.get)[11:]  # whatever the sparsity, up to 37.5 %
    assert {"ffn.11", "ffn.28"} <= set(spared)  # they write the massive activations of this model


def test_the_main_job_from_the_command_line(subfit, tmp_path):
    small = ["--calibration.windows", 16, "--calibration.length", 128, "--evaluation.windows", 4]
    cores = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subfit("compress", "--config", EXPERIMENTS / "subfit.yaml", *small, "--output", "out", "--json", env=cores)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["selected"]) == 16
    assert record["size"]["added_parameters"] <= 0.1 * record["size"]["removed_parameters"]
    assert record["size"]["after"]["kv_bytes_per_token"] * 30 == record["size"]["before"]["kv_bytes_per_token"] * 22
    assert 1 < record["evaluation"]["perplexity_ratio"] < 3
    model, tokenizer = load(str(tmp_path / "out"))
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    cached, plain = (model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached, plain)
