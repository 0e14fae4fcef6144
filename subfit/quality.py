"""Perplexity of a model, and how closely it agrees with a reference."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torchmetrics import Metric
from tqdm.auto import tqdm

from subfit.errors import SubFitError

CHUNK = 64  # positions whose distributions over the vocabulary are held at once, in float32: few enough for the cache

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
        self.tokens += tokens[:, 1:].numel()
        if reference is None:
            self.nll += next_token_loss(logits, tokens)
            return
        for gold, q, p in _chunks(tokens[:, 1:, None], logits[:, :-1], reference[:, :-1]):
            q, p = q.float().log_softmax(-1), p.float().log_softmax(-1)
            self.nll -= q.gather(1, gold).sum(dtype=torch.float64)
            self.reference_nll -= p.gather(1, gold).sum(dtype=torch.float64)
            self.agreed += (p.argmax(-1) == q.argmax(-1)).sum()
            self.divergence += _kl(q, p)

    def compute(self) -> dict[str, Tensor]:
        """Returns the means per token: `nll`, `reference_nll`, `agreed` (a share) and `divergence`, in nats."""
        names = ("nll", "reference_nll", "agreed", "divergence")
        return {name: getattr(self, name) / self.tokens for name in names}


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns the loss of predicting each window's tokens but the first, in nats, summed in float64.

    Args:
        logits: (windows, length, vocabulary).
        tokens: (windows, length).
    """
    parts = _chunks(tokens[:, 1:], logits[:, :-1])
    return torch.stack([cross_entropy(q.float(), gold, reduction="sum").double() for gold, q in parts]).sum()


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Returns the KL divergence of `logits` from `reference`'s, in nats, summed over all but each window's last position.

    Args:
        logits: (windows, length, vocabulary).
        reference: the same of the model to compare with.
    """
    parts = _chunks(logits[:, :-1], reference[:, :-1])
    return torch.stack([_kl(q.float().log_softmax(-1), p.float().log_softmax(-1)) for q, p in parts]).sum()


def _kl(q: Tensor, p: Tensor) -> Tensor:
    """Divergence of log-probabilities `q` from `p`, summed."""
    return kl_div(q, p, reduction="sum", log_target=True).double()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors (windows, length, ...), flattened to (positions, ...)."""
    return zip(*(t.flatten(0, 1).split(CHUNK) for t in tensors), strict=True)


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
