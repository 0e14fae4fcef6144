"""The losses of a distillation, and how to add one.

A loss is a function of a `Batch` that returns a scalar. It is used with the weight that `FineTuning.losses` gives it, by
its dotted path or its file: `losses: {my_package.losses.reverse_kl: 0.5}` or `losses: {my_losses.py:reverse_kl: 0.5}`.

    from torch import Tensor, nn
    from subfit.finetuning.losses import Batch

    def hidden_states(batch: Batch) -> Tensor:
        '''Mean squared error of what the head reads.'''
        return nn.functional.mse_loss(batch.student.last_hidden_state, batch.teacher.last_hidden_state)

    def reverse_kl(batch: Batch) -> Tensor:
        '''KL divergence of the teacher from the student, in nats.'''
        return batch.mean_over_tokens(lambda q, p, following: (q.exp() * (q - p)).sum())
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subfit.errors import SubFitError
from subfit.finetuning.chunked_loss import TokenLoss, mean_over_tokens
from subfit.options.importing import module_of


@dataclass(frozen=True)
class Batch:
    """What student and teacher, the model with and without its replacements, make of some windows.

    Attributes:
        model: the causal language model of transformers that both are.
        tokens: (windows, length).
        student: what `model.base_model` returns with the replacements; its `last_hidden_state`, after the final norm, is
            (windows, length, d), in the model's data type, with a gradient.
        teacher: the same without the replacements, and without a gradient.
        student_stream: the residual stream after each changed layer, (windows, length, d) each.
        teacher_stream: the same without the replacements.
    """

    model: Any
    tokens: Tensor
    student: Any
    teacher: Any
    student_stream: Sequence[Tensor]
    teacher_stream: Sequence[Tensor]

    def mean_over_tokens(self, loss: TokenLoss) -> Tensor:
        """Returns the mean over predicted tokens of a loss of the distributions over the vocabulary, which are never all in
        memory; the head runs once more for it.

        Args:
            loss: given some positions' log-probabilities of the student and of the teacher, (positions, vocabulary) each,
                and the tokens that follow, (positions), returns the sum of its values.
        """
        return mean_over_tokens(self.model, self.student, self.teacher, self.tokens, [loss], [1.0])[0]


BatchLoss = Callable[[Batch], Tensor]


def kl_divergence(q: Tensor, p: Tensor, following: Tensor) -> Tensor:
    """Returns the sum of the KL divergences of the student's distributions from the teacher's, in nats; see `TokenLoss`."""
    return (p.exp() * (p - q)).sum()


def next_token_loss(q: Tensor, p: Tensor, following: Tensor) -> Tensor:
    """Returns the sum of the student's losses of predicting the tokens that follow, in nats; see `TokenLoss`."""
    return -q.gather(1, following[:, None]).sum()


def teacher_next_token_loss(q: Tensor, p: Tensor, following: Tensor) -> Tensor:
    """Returns the sum of the teacher's losses of predicting the tokens that follow, in nats; see `TokenLoss`."""
    return next_token_loss(p, p, following)


def distillation_loss(batch: Batch, kl: float, next_token: float) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum of KL divergence and next-token loss, for which the head runs once.

    Args:
        kl: weight of the divergence of the student's distributions from the teacher's.
        next_token: weight of the loss of predicting the tokens themselves.

    Returns:
        The weighted sum, and KL divergence, next-token loss and the teacher's next-token loss, (3), float64, without
        gradient; all in nats, means over all but each window's last position.
    """
    losses = [kl_divergence, next_token_loss, teacher_next_token_loss]
    return mean_over_tokens(batch.model, batch.student, batch.teacher, batch.tokens, losses, [kl, next_token, 0.0])


def stream_error(batch: Batch) -> Tensor:
    """Returns the mean squared error of the residual stream after each changed layer, as a share of the mean square of what
    it should be; mean over windows and layers."""
    pairs = zip(batch.student_stream, batch.teacher_stream, strict=True)
    return torch.stack([_relative_error(stream, goal) for stream, goal in pairs]).mean()


def _relative_error(stream: Tensor, goal: Tensor) -> Tensor:
    wide = torch.promote_types(goal.dtype, torch.float32)
    stream, goal = stream.to(wide), goal.to(wide)
    return ((stream - goal).square().mean((1, 2)) / goal.square().mean((1, 2))).mean()


def find_loss(name: str) -> BatchLoss:
    """Returns the loss that a dotted path, or `file.py:function`, stands for.

    Raises:
        SubFitError: if there is no such function, or importing it fails.
    """
    place, found, function = name.rpartition(":")
    if not found:
        place, _, function = name.rpartition(".")
    try:
        module = module_of(Path(place)) if found else import_module(place)
        loss: BatchLoss = getattr(module, function)
    except Exception as error:  # whatever the imported code raises
        reason = f"{type(error).__name__}: {error}"
        raise SubFitError(f"finetune.losses: {name} is no function that can be imported ({reason})") from error
    if not callable(loss):
        raise SubFitError(f"finetune.losses: {name} is no function")
    return loss
