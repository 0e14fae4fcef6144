"""Compares what llama.cpp computes of a file with what transformers computes of the model."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from subfit.export.llama_engine import PLAIN, Engine
from subfit.export.pre_tokenizers import PROBES
from subfit.model.sizes import kv_bytes_per_token

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees, and",
)
NEW_TOKENS = 32
EXACT = 1e-3  # of a log-probability in float32
KL_LIMITS = {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2, "q6_k": 0.05, "q5_k_m": 0.1, "q4_k_m": 0.3}


@torch.no_grad()
def verify_gguf(path: Path, model: Any, tokenizer: Any, kind: str) -> dict[str, Any]:
    """Compares a file with the model it is of, which is brought to float32, on prompts and what it generates after them.

    Args:
        kind: data type of the file's matrices. Of `f32`, every token must be equal and every log-probability within 1e-3; of
            the others, the mean KL divergence from the model is bounded.

    Returns:
        Plain data: `texts` and `equal_texts`, which have the same tokens; `tokens` and `equal_tokens`, generated greedily;
        `log_probability_difference`, the largest of the model's generated tokens; `kl`, the mean over them in nats;
        `cache_bytes_per_token`, of llama.cpp and of transformers, in float32; and `passed`.
    """
    model.float()
    texts = [unicodedata.normalize("NFC", text) for text in (*PROMPTS, *PROBES)]
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    longest = max(map(len, prompts)) + NEW_TOKENS
    equal, differences, divergences = 0, [], []
    with Engine(path, max(longest, 128), **PLAIN) as engine:
        same = sum(engine.tokenize(text, special=True) == tokenizer(text)["input_ids"] for text in texts)
        for prompt in prompts:
            mine = _generate(model, prompt)
            equal += sum(a == b for a, b in zip(mine, engine.generate(prompt, NEW_TOKENS), strict=True))
            whole = torch.tensor([prompt + mine], device=model.device)
            p = model(whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1).cpu().numpy()
            q = _log_softmax(engine.logits(prompt + mine)[len(prompt) - 1 : -1])
            differences.append(np.abs(p - q)[np.arange(NEW_TOKENS), mine].max())
            divergences.append((np.exp(p) * (p - q)).sum(-1).mean())
        held = engine.cache_bytes()
    found = {
        "texts": len(texts),
        "equal_texts": same,
        "tokens": len(prompts) * NEW_TOKENS,
        "equal_tokens": equal,
        "log_probability_difference": float(max(differences)),
        "kl": float(np.mean(divergences)),
        "cache_bytes_per_token": {"llama.cpp": held, "transformers": sum(kv_bytes_per_token(model))},
    }
    exact = equal == found["tokens"] and found["log_probability_difference"] <= EXACT
    passed = same == len(texts) and found["kl"] <= KL_LIMITS[kind] and (exact or kind != "f32")
    return found | {"passed": passed}


def _generate(model: Any, prompt: list[int]) -> list[int]:
    """The likeliest tokens, whatever ends a text."""
    ids = torch.tensor([prompt], device=model.device)
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    return list(model.generate(ids, attention_mask=mask, eos_token_id=None, **options)[0, len(prompt) :].tolist())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return torch.from_numpy(logits).double().log_softmax(-1).numpy()
