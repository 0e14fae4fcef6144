"""What a model writes after a prompt, beside what its reference writes."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from subfit.errors import SubFitError
from subfit.progress import Stage


def compare_generations(
    model: Any, reference: Any | None, tokenizer: Any, prompts: Sequence[str], new_tokens: int
) -> list[dict[str, Any]]:
    """Returns how a model, and its reference if there is one, continue each prompt by greedy decoding.

    Args:
        model, reference: causal language models of transformers, of one vocabulary.
        tokenizer: of both models. It adds its special tokens to a prompt; there is no chat template.
        prompts: texts.
        new_tokens: tokens to write at most; a model stops after its end-of-text token.

    Returns:
        For each prompt: `prompt`, `text` (the continuation without special tokens) and `tokens` (how many were written);
        with a reference also `reference_text`, `reference_tokens` and `equal_tokens`, how many of both continuations'
        first tokens are equal.

    Raises:
        SubFitError: if a prompt has no token, or does not fit into the models' context, or a model gives NaN.
    """
    if new_tokens < 1:
        raise SubFitError(f"new_tokens is {new_tokens}; it must be at least 1")
    if not prompts:
        return []
    models = [model] if reference is None else [model, reference]
    encoded = [_encode(prompt, tokenizer, models, new_tokens) for prompt in prompts]
    found: list[dict[str, Any]] = []
    with Stage("continuing prompts", len(prompts), "prompts") as progress:
        for prompt, ids in zip(prompts, encoded, strict=True):
            written = [_continue(m, ids, new_tokens, _ends(m, tokenizer)) for m in models]
            found.append({"prompt": prompt, **_described(written, tokenizer)})
            progress.advance()
    return found


def _encode(prompt: str, tokenizer: Any, models: Sequence[Any], new_tokens: int) -> Tensor:
    """The tokens of a prompt, (1, tokens)."""
    ids = tokenizer.encode(prompt, verbose=False)
    if not ids:
        raise SubFitError(f"the prompt {prompt!r} has no token; give it a text")
    for model in models:
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and len(ids) + new_tokens > context:
            long = f"the prompt {prompt[:40]!r} has {len(ids)} tokens"
            raise SubFitError(f"{long}; with {new_tokens} new ones, it must fit into the model's context of {context}")
    return torch.tensor([ids])


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The end-of-text tokens of a model."""
    own = getattr(model.generation_config, "eos_token_id", None)
    return {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}


@torch.no_grad()
def _continue(model: Any, prompt: Tensor, new_tokens: int, ends: set[int]) -> list[int]:
    """The likeliest token after the prompt (1, tokens), the likeliest after that, and so on, with the model's cache.

    Without `generate`, which follows the checkpoint's settings for generation: a penalty on repetition, for instance, would
    hide that a compressed model repeats itself.
    """
    step, cache, written = prompt.to(next(model.parameters()).device), None, list[int]()
    while len(written) < new_tokens and not ends.intersection(written[-1:]):
        output = model(step, past_key_values=cache, use_cache=True)
        last, cache = output.logits[:, -1], output.past_key_values
        if last.isnan().any():
            raise SubFitError("the model gives NaN logits; it cannot write")
        step = last.argmax(-1, keepdim=True)
        written.append(int(step))
    return written


def _described(written: list[list[int]], tokenizer: Any) -> dict[str, Any]:
    """The fields of what the model and, second, the reference have written."""
    found: dict[str, Any] = {}
    for prefix, ids in zip(("", "reference_"), written, strict=False):
        found |= {f"{prefix}text": tokenizer.decode(ids, skip_special_tokens=True), f"{prefix}tokens": len(ids)}
    if len(written) > 1:
        found["equal_tokens"] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*written, strict=False)))
    return found
