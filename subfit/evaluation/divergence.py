"""Perplexity of a model, and how closely it agrees with a reference."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from subfit.errors import SubFitError
from subfit.progress import Stage

CHUNK = 64  # positions whose distributions over the vocabulary are held at once, in float32: few enough for the cache

SUMS = ("tokens", "nll", "reference_nll", "agreed", "divergence")  # of a window
Logits = Callable[[Tensor], Tensor]


class Agreement(Metric):
    """Next-token loss of a model and of its reference, and how far their distributions are apart; sums over each window."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # processes that work together all see every window
        for name in SUMS:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, tokens: Tensor, first: Tensor, reference: Tensor | None = None) -> None:
        """Adds windows.

        Args:
            logits: (windows, length, vocabulary).
            tokens: (windows, length).
            first: (windows), the position of the first token of each window that counts; at least 1, for the token at
                position 0 is not predicted.
            reference: the reference model's logits, of the same shape.
        """
        gold = tokens[:, 1:]
        counts = torch.arange(1, tokens.shape[1], device=gold.device) >= first[:, None]
        found = {"tokens": counts}
        if reference is None:
            found["nll"] = token_losses(logits[:, :-1], gold)
        else:
            found |= _comparison(logits[:, :-1], reference[:, :-1], gold)
        for name, values in found.items():
            getattr(self, name).append(values.where(counts, 0).sum(1, dtype=torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """Returns the sums over each window, (windows): `tokens` that count, and their `nll`; with a reference,
        `reference_nll`, `agreed` (tokens with the same most likely successor) and `divergence`. In nats, float64."""
        return {name: dim_zero_cat(values) for name in SUMS if (values := getattr(self, name))}


def _comparison(logits: Tensor, reference: Tensor, gold: Tensor) -> dict[str, Tensor]:
    """The terms of `SUMS` for each predicted token, (windows, positions)."""
    parts = []
    for target, q, p in _chunks(gold[..., None], logits, reference):
        q, p = q.float().log_softmax(-1), p.float().log_softmax(-1)
        agreed = (p.argmax(-1) == q.argmax(-1)).float()
        parts.append((-q.gather(1, target)[:, 0], -p.gather(1, target)[:, 0], agreed, _kl(q, p)))
    joined = (torch.cat(terms).view(gold.shape) for terms in zip(*parts, strict=True))
    return dict(zip(SUMS[1:], joined, strict=True))


def token_losses(logits: Tensor, gold: Tensor) -> Tensor:
    """Returns the loss of each of the tokens `gold` (windows, positions), in nats, float32.

    Args:
        logits: (windows, positions, vocabulary), the prediction of the token at the same position of `gold`.
    """
    parts = _chunks(gold, logits)
    return torch.cat([cross_entropy(q.float(), target, reduction="none") for target, q in parts]).view(gold.shape)


def next_token_loss_sum(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns the loss of predicting each window's tokens but the first, in nats, summed in float64.

    Args:
        logits: (windows, length, vocabulary).
        tokens: (windows, length).
    """
    return token_losses(logits[:, :-1], tokens[:, 1:]).sum(dtype=torch.float64)


def divergence_sum(logits: Tensor, reference: Tensor) -> Tensor:
    """Returns the KL divergence of `logits` from `reference`'s, in nats, summed over all but each window's last position.

    Args:
        logits: (windows, length, vocabulary).
        reference: the same of the model to compare with.
    """
    parts = _chunks(logits[:, :-1], reference[:, :-1])
    return torch.cat([_kl(q.float().log_softmax(-1), p.float().log_softmax(-1)) for q, p in parts]).sum(dtype=torch.float64)


def _kl(q: Tensor, p: Tensor) -> Tensor:
    """Divergence of log-probabilities `q` from `p`, both (positions, vocabulary), at each position."""
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors (windows, length, ...), flattened to (positions, ...)."""
    return zip(*(t.flatten(0, 1).split(CHUNK) for t in tensors), strict=True)


@torch.no_grad()
def window_sums(
    logits: Logits,
    tokens: Tensor,
    reference: Logits | None = None,
    batch_size: int = 4,
    label: str = "evaluating",
    first: Tensor | None = None,
) -> dict[str, Tensor]:
    """Returns `Agreement` over windows of tokens, each predicted from its own beginning; see `Agreement.compute`.

    Args:
        logits: maps tokens (windows, length) to the model's logits (windows, length, vocabulary).
        tokens: (windows, length).
        reference: the same as `logits` for the model to compare with, such as the dense one.
        batch_size: windows run at once.
        label: what the stage is called, see `subfit.progress`.
        first: (windows), the position of the first token of each window that counts; 1 if not given.

    Raises:
        SubFitError: if there is no window, or the model gives NaN.
    """
    if not len(tokens):
        raise SubFitError("there is no window to evaluate on")
    metric = Agreement()
    starts = torch.ones(len(tokens), dtype=torch.long) if first is None else first
    batches = zip(tokens.split(batch_size), starts.split(batch_size), strict=True)
    with Stage(label, len(tokens), "windows") as progress:
        for batch, start in batches:
            found = logits(batch)
            compared = reference(batch) if reference else None
            metric.update(found, batch.to(found.device), start.to(found.device), compared)
            progress.advance(len(batch))
    sums = {name: values.reshape(-1) for name, values in metric.compute().items()}  # of one window it makes a scalar
    if sums["nll"].isnan().any():
        raise SubFitError("the model gives NaN logits; its perplexity is not defined")
    return sums


def summary(sums: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the perplexity, and how it compares with the reference's, from the sums over windows.

    Returns:
        `tokens` (predicted ones), `perplexity` and, with a reference, `reference_perplexity`, `perplexity_ratio`,
        `agreement` (share of tokens with the same most likely successor) and `kl` (divergence of the model from the
        reference, mean over tokens, in nats).
    """
    total = {name: float(values.sum()) for name, values in sums.items()}
    means = {name: value / total["tokens"] for name, value in total.items()}
    result = {"tokens": int(total["tokens"]), "perplexity": exp(means["nll"])}
    if "reference_nll" not in means:
        return result
    return {
        **result,
        "reference_perplexity": exp(means["reference_nll"]),
        "perplexity_ratio": exp(means["nll"] - means["reference_nll"]),
        "agreement": means["agreed"],
        "kl": means["divergence"],
    }


def logits_of(model: Any) -> Logits:
    """Returns the function from tokens to logits of a causal language model of transformers."""
    device = next(model.parameters()).device
    return lambda tokens: model(tokens.to(device), use_cache=False).logits


def exp(nll: float) -> float:
    """Returns the perplexity of a mean loss in nats; infinite where it is out of range."""
    return float(torch.tensor(nll, dtype=torch.float64).exp())
