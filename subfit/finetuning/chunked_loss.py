"""Losses of next-token distributions, in memory that does not grow with the vocabulary times the positions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 128  # positions whose distributions over the vocabulary are held at once

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of the student's log-probabilities (positions, vocabulary), the teacher's, and the tokens that follow
(positions), that returns the sum of a loss over the positions, differentiable in the student's."""


class _Given(nn.Module):
    """Takes the place of a model without its head, and gives hidden states that are known already."""

    def __init__(self, output: Any):
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


@contextmanager
def _body_replaced(model: Any, module: nn.Module) -> Iterator[None]:
    body = model.base_model
    setattr(model, model.base_model_prefix, module)
    try:
        yield
    finally:
        setattr(model, model.base_model_prefix, body)


def logits_of_hidden(model: Any, output: Any, hidden: Tensor) -> Tensor:
    """Returns the logits of some positions, (positions, vocabulary), by the model's own forward pass after its body.

    Args:
        model: a causal language model of transformers.
        output: what `model.base_model` has returned; says only of what class it is.
        hidden: (positions, d), hidden states after the final norm.
    """
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    with _body_replaced(model, _Given(type(output)(last_hidden_state=hidden[None]))):
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        return logits


def mean_over_tokens(
    model: Any, student: Any, teacher: Any, tokens: Tensor, losses: Sequence[TokenLoss], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Returns a weighted sum of losses of next-token predictions, differentiable in the student's hidden states.

    A chunk's gradient is taken as soon as its loss is known, so that neither logits nor probabilities are kept for the
    backward pass: the head runs forward once for each model and backward once, as without chunks. The head's own weights
    get no gradient.

    Args:
        model: a causal language model of transformers.
        student, teacher: what `model.base_model` has returned for `tokens`, with and without the replacements.
        tokens: (windows, length).
        losses: what to compute of each chunk.
        weights: of the losses.

    Returns:
        The weighted sum, and the losses, float64, without gradient; means over all but each window's last position.
    """
    following = tokens[:, 1:].flatten()
    own, dense = (output.last_hidden_state[:, :-1].flatten(0, 1) for output in (student, teacher))

    def means(part: slice, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            p = _log_probabilities(logits_of_hidden(model, teacher, dense[part]))
        q = _log_probabilities(logits_of_hidden(model, student, hidden))
        return torch.stack([loss(q, p, following[part]) for loss in losses]).double() / len(following)

    total: tuple[Tensor, Tensor] = _Chunked.apply(own, means, torch.tensor(weights, dtype=torch.float64, device=own.device))
    return total


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


class _Chunked(torch.autograd.Function):
    """Weights and sums losses over chunks of hidden states, and keeps the gradient of the sum by these alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, means: Any, weights: Tensor) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros_like(weights)
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            with torch.set_grad_enabled(wanted):
                chunk = hidden[part].detach().requires_grad_(wanted)
                found = means(part, chunk)
                if gradient is not None:
                    (gradient[part],) = torch.autograd.grad(weights @ found, chunk)
            total += found.detach()
        ctx.gradient = gradient
        ctx.mark_non_differentiable(total)
        return weights @ total, total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * upstream[0].to(ctx.gradient.dtype), None, None
