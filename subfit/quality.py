"""Perplexity of a model, and how closely it agrees with a reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from tqdm.auto import tqdm

from subfit.errors import SubFitError

CHUNK = 512  # positions whose distributions over the vocabulary are held at once, in float32

Logits = Callable[[Tensor], Tensor]


class Agreement(Metric):
    """Next-token loss of a model and of its reference, and how far their distributions are apart; sums over tokens."""

    full_state_update = False
    tokens: Tensor
    nll: Tensor
    reference_nll: Tensor
    agreed: Tensor
    divergence: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("tokens", "nll", "reference_nll", "agreed", "divergence"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, tokens: Tensor, reference: Tensor | None = None) -> None:
        """Adds windows.

        Args:
            logits: (windows, length, vocabulary).
            tokens: (windows, length); the first of each window is not predicted.
            reference: the reference model's logits, of the same shape.
        """
        flat = logits[:, :-1].flatten(0, 1)
        base = None if reference is None else reference[:, :-1].flatten(0, 1)
        next_tokens = tokens[:, 1:].reshape(-1)
        for start in range(0, len(flat), CHUNK):
            part = slice(start, start + CHUNK)
            q, gold = flat[part].float().log_softmax(-1), next_tokens[part, None]
            self.tokens += len(gold)
            self.nll -= q.gather(1, gold).sum(dtype=torch.float64)
            if base is not None:
                p = base[part].float().log_softmax(-1)
                self.reference_nll -= p.gather(1, gold).sum(dtype=torch.float64)
                self.agreed += (p.argmax(-1) == q.argmax(-1)).sum()
                self.divergence += torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).double()

    def compute(self) -> dict[str, Tensor]:
        """Returns the means per token: `nll`, `reference_nll`, `agreed` (a share) and `divergence`, in nats."""
        names = ("nll", "reference_nll", "agreed", "divergence")
        return {name: getattr(self, name) / self.tokens for name in names}


@torch.no_grad()
def evaluate_logits(
    logits: Logits, tokens: Tensor, reference: Logits | None = None, batch_size: int = 4, label: str = "evaluate"
) -> dict[str, Any]:
    """Returns the perplexity over windows of tokens, each predicted from its own beginning.

    Args:
        logits: maps tokens (windows, length) to the model's logits (windows, length, vocabulary).
        tokens: (windows, length).
        reference: the same for the model to compare with, such as the dense one.

    Returns:
        `perplexity`, `tokens` (predicted ones) and, with a reference, `reference_perplexity`, `perplexity_ratio`,
        `agreement` (share of tokens with the same most likely successor) and `kl` (divergence of the model from the
        reference, mean over tokens, in nats).

    Raises:
        SubFitError: if the model gives NaN.
    """
    metric = None
    for batch in tqdm(tokens.split(batch_size), desc=label, unit="batch"):
        found = logits(batch)
        metric = metric or Agreement().to(found.device)
        metric.update(found, batch.to(found.device), reference(batch) if reference else None)
    if metric is None:
        raise SubFitError("there is no window to evaluate on")
    means = {name: float(value) for name, value in metric.compute().items()}
    if means["nll"] != means["nll"]:
        raise SubFitError("the model gives NaN logits; its perplexity is not defined")
    result = {"tokens": int(metric.tokens), "perplexity": _exp(means["nll"])}
    if reference is None:
        return result
    return {
        **result,
        "reference_perplexity": _exp(means["reference_nll"]),
        "perplexity_ratio": _exp(means["nll"] - means["reference_nll"]),
        "agreement": means["agreed"],
        "kl": means["divergence"],
    }


def logits_of(model: Any) -> Logits:
    """Returns the function from tokens to logits of a causal language model of transformers."""
    device = next(model.parameters()).device
    return lambda tokens: model(tokens.to(device), use_cache=False).logits


def _exp(nll: float) -> float:
    """Perplexity of a mean loss in nats; infinite where it is out of range."""
    return float(torch.tensor(nll, dtype=torch.float64).exp())


@torch.no_grad()
def kv_bytes_per_token(model: Any) -> list[int]:
    """Returns the bytes that each layer of a model adds to the key-value cache for each token, read off a real cache."""
    length = 4
    tokens = torch.zeros((1, length), dtype=torch.long, device=next(model.parameters()).device)
    cache = model(tokens, use_cache=True).past_key_values
    held = [[t for t in (layer.keys, layer.values) if t is not None] for layer in cache.layers]
    return [sum(t.numel() * t.element_size() for t in tensors) // length for tensors in held]
