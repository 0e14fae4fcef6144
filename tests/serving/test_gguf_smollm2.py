"""SmolLM2 with a quarter of its submodules replaced, in llama.cpp: exact, quantised, smaller and faster."""

import json
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from smollm2 import MANUAL, compressed_smollm2

from subfit.cli.main import main
from subfit.export.llama_engine import PLAIN, Engine

pytest.importorskip("llama_cpp", reason="run by `make test-serving`")

KINDS = ("f32", "q8_0", "q4_k_m")
MODELS = ("dense", "compressed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def files(folder):
    """The files of both models, of every kind, and what `subfit export` said."""
    said = {}
    for kind in KINDS:
        for model, name in zip(MODELS, ("smollm2-135m", str(compressed_smollm2("subfit"))), strict=True):
            options = ["--type", kind, "--json", *(["--verify"] if model == "compressed" else [])]
            with redirect_stdout(StringIO()) as printed:
                assert main(["export", name, str(folder / f"{model}-{kind}.gguf"), *options]) == 0
            said[model, kind] = json.loads(printed.getvalue())
    return said


def engine(folder: Path, model: str, kind: str, **settings) -> Engine:
    return Engine(folder / f"{model}-{kind}.gguf", 1024, **settings)


def log_probabilities(folder: Path, model: str, kind: str) -> np.ndarray:
    """Of the tokens of a text, (tokens, vocabulary)."""
    with engine(folder, model, kind, **PLAIN) as opened:
        logits = torch.from_numpy(opened.logits(opened.tokenize(MANUAL[-4000:])[:600]))
    return logits.log_softmax(-1).numpy()


def test_the_model_is_exact(files):
    found = files["compressed", "f32"]["verification"]
    print(json.dumps(found))
    assert found["equal_tokens"] == found["tokens"] == 128
    assert found["log_probability_difference"] < 1e-3
    assert found["equal_texts"] == found["texts"]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_quantising_loses_no_more_than_that_of_the_dense_model(files, folder, kind):
    kl = {}
    for model in MODELS:
        p, q = (log_probabilities(folder, model, which) for which in ("f32", kind))
        kl[model] = float((np.exp(p) * (p - q)).sum(-1).mean())
    print(kind, kl)
    assert kl["compressed"] < 1.2 * kl["dense"]


def test_the_cache_is_that_of_the_kept_attentions(files, folder):
    held = {}
    for model in MODELS:
        with engine(folder, model, "f32") as opened:
            held[model] = opened.cache_bytes()
    print(held)
    assert files["dense", "f32"]["kv_bytes_per_token"] <= held["dense"] < files["dense", "f32"]["kv_bytes_per_token"] + 32
    assert held["compressed"] / held["dense"] == pytest.approx(22 / 30, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_and_decoding_are_faster(files, folder, kind, all_cores):
    tokens = np.random.default_rng(0).integers(100, 4000, (1, 512))
    ratios = {"prefill": [], "decoding": []}
    with engine(folder, "dense", kind) as dense, engine(folder, "compressed", kind) as compressed:
        for turn in range(-1, 7):
            seconds = {}
            for name, opened in (("dense", dense), ("compressed", compressed))[:: 1 if turn % 2 else -1]:
                opened.clear()
                times = [time.perf_counter()]
                opened.read(tokens, 0)
                times.append(time.perf_counter())
                for step in range(24):
                    opened.read(tokens[:, step : step + 1], 512 + step)
                times.append(time.perf_counter())
                seconds[name] = np.diff(times)
            if turn >= 0:
                for stage, ratio in zip(ratios, seconds["dense"] / seconds["compressed"], strict=True):
                    ratios[stage].append(ratio)
    found = {stage: median(values) for stage, values in ratios.items()}
    print(kind, found)
    assert found["prefill"] > 1.2
    assert found["decoding"] > 1.1
