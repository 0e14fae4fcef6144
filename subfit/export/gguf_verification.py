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
BYTES = 4  # of a number in the cache
BOOKKEEPING = 64  # bytes for a token, at most, that llama.cpp saves besides keys and values
EXACT = 1e-3  # of a log-probability in float32
KL_LIMITS = {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2, "q6_k": 0.05, "q5_k_m": 0.1, "q4_k_m": 0.3}


@torch.no_grad()
def verify_gguf(path: Path, model: Any, tokenizer: Any, kind: str, head_size: int) -> dict[str, Any]:
    """Compares a file with the model it is of, which is brought to float32, on prompts and what it generates after them.

    Args:
        kind: data type of the file's matrices. Of `f32`, every token must be equal and every log-probability within 1e-3; of
            the others, the mean KL divergence from the model is bounded.
        head_size: of an Attention; where none is left, the file has one head of this size.

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
    surplus = held - max(found["cache_bytes_per_token"]["transformers"], 2 * BYTES * head_size)
    close = found["kl"] <= KL_LIMITS[kind] and 0 <= surplus < BOOKKEEPING
    return found | {"passed": same == len(texts) and close and (exact or kind != "f32")}


def _generate(model: Any, prompt: list[int]) -> list[int]:
    """The likeliest tokens, one after the other, whatever ends a text."""
    ids, cache, found = prompt, None, list[int]()
    while len(found) < NEW_TOKENS:  # not by `generate`, which may do otherwise by the model's own settings
        output = model(torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
        ids, cache = [int(output.logits[0, -1].argmax())], output.past_key_values
        found += ids
    return found


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return torch.from_numpy(logits).double().log_softmax(-1).numpy()
