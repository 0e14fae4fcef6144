"""SmolLM2 in vLLM: exact, faster, with the smaller cache, and served to an OpenAI-compatible client."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
import torch
from smollm2 import GIVEN, compressed_smollm2
from vllm_models import ENVIRONMENT, PROMPTS, PYTHON, check_same, in_vllm

from subfit import load

TEXTS = ["The capital of France is", "Water boils at a temperature of", "def add(a, b):", "Once upon a time there was a"]


@pytest.fixture(scope="module")
def folders():
    """SmolLM2 with a quarter of its submodules replaced, in float32, by preset."""
    return {name: compressed_smollm2(name) for name in GIVEN}


@pytest.fixture(scope="module")
def prompts(folders):
    _, tokenizer = load(str(folders["subfit"]))
    return torch.tensor([tokenizer(text)["input_ids"][:5] for text in TEXTS[:PROMPTS]])


def test_vllm_generates_what_transformers_does(folders, prompts, tmp_path):
    runs = {name: {"folder": str(folder), "options": {"max_model_len": 256}} for name, folder in folders.items()}
    served = in_vllm(prompts, runs, tmp_path)
    for name, folder in folders.items():
        model = load(str(folder))[0]
        check_same(served[name], model, prompts)
        if name == next(iter(folders)):  # of later ones in the same process, vLLM still holds parts of earlier ones
            check_loading(served[name]["most"], model)


def check_loading(most, model):
    """Asserts that vLLM's weights took, at their most, those of the compressed model and of two submodules."""
    head = model.get_output_embeddings().weight.numel()  # it is built before it is tied to the embedding
    largest = max(site["parameters"] for site in model.config.subfit["sites"])
    assert most <= sum(p.numel() for p in model.parameters()) + head + 2 * largest


def test_it_is_faster_by_what_is_saved(folders, tmp_path):
    subfit = os.path.join(os.path.dirname(sys.executable), "subfit")
    work = ["--prompt_lengths", "256", "--contexts", "128", "--batch_sizes", "1", "--new_tokens", "32", "--repeats", "5"]
    given = [folders["subfit"], "--reference", "smollm2-135m", "--engine", "vllm", "--engine_python", PYTHON, *work]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    command = [subfit, "benchmark", *given, "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    cache = result["engine"]["cache"]
    assert cache["compressed"]["bytes_per_token"] * 30 == cache["dense"]["bytes_per_token"] * 22
    assert cache["compressed"]["tokens"] > 1.3 * cache["dense"]["tokens"]
    assert result["prefill"][0]["speedup"]["measured"] >= 1.2
    assert result["decoding"][0]["speedup"]["measured"] >= 1.1


@contextmanager
def server(folder, log):
    """The address of `vllm serve`, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    command = [PYTHON.with_name("vllm"), "serve", folder, *options]
    with log.open("w") as output, subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=output) as process:
        try:
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()[-4000:]
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def test_vllm_serve_answers_as_transformers_generates(folders, tmp_path):
    folder = folders["subfit"]
    model, tokenizer = load(str(folder))
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    request = {"model": str(folder), "prompt": TEXTS[0], "max_tokens": 16, "temperature": 0}
    with server(folder, tmp_path / "log") as address:
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{address}/v1/completions", json.dumps(request).encode(), headers)
        with urllib.request.urlopen(asked, timeout=300) as answer:
            found = json.load(answer)["choices"][0]["text"]
    assert found == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
