"""Compressed models to serve by vLLM, what transformers generates with them, and how to ask vLLM for the same."""

import json
import os
import subprocess
from pathlib import Path

import torch
from conftest import Given, recipe, tiny_model, tiny_tokens

from subfit.pipeline import compress_model

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "KMP_BLOCKTIME": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CACHE_ROOT": str(ROOT / "build" / "serving" / "vllm"),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
SHAPE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 160}
PROMPTS, NEW = 4, 32


def compressed(family: str, names: list[str], **given):
    """Returns a small compressed model whose heads are wide enough for the kernels of vLLM."""
    model = tiny_model(family, **({**SHAPE, "n_embd": 128} if family == "gpt2" else SHAPE))
    made = recipe(selector=Given(names), **given)
    return compress_model(model, tiny_tokens(16, 48), made, batch_size=4).model


@torch.no_grad()
def expected(model, prompts: torch.Tensor) -> dict:
    """What transformers generates greedily, and the log-probabilities of these tokens."""
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    whole = model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
    start = prompts.shape[1]
    logprobs = model(whole).logits[:, start - 1 : -1].log_softmax(-1)
    return {"tokens": whole[:, start:], "logprobs": logprobs.gather(-1, whole[:, start:, None])[..., 0]}


def in_vllm(prompts: torch.Tensor, runs: dict, folder: Path, **environment: str) -> dict:
    """What vLLM generates; see `vllm_generate`."""
    request, answer = folder / "request.json", folder / "answer.json"
    request.write_text(json.dumps({"prompts": prompts.tolist(), "count": NEW, "runs": runs}))
    command = [PYTHON, Path(__file__).with_name("vllm_generate.py"), request, answer]
    environment = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **environment}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(answer.read_text())


def check_same(found: dict, model, prompts: torch.Tensor) -> None:
    """Asserts that vLLM gave the tokens and log-probabilities of transformers, with a cache for kept Attentions alone."""
    assert "error" not in found, found["error"]
    wanted = expected(model, prompts)
    assert found["tokens"] == wanted["tokens"].tolist()
    torch.testing.assert_close(torch.tensor(found["logprobs"]), wanted["logprobs"].float(), rtol=0, atol=1e-4)
    replaced = {site["layer"] for site in model.config.subfit["sites"] if site["kind"] == "attention"}
    cached = [int(next(part for part in name.split(".") if part.isdigit())) for name in found["cached"]]
    assert sorted(cached) == sorted(set(range(model.config.num_hidden_layers)) - replaced)
