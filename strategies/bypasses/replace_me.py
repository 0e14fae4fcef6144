"""ReplaceMe: a linear map that is merged into the last FeedForward before the cut."""

from typing import Literal

import torch
from torch import Tensor, nn

from subfit.calibration.moments import Moments, StreamingMoments
from subfit.errors import SubFitError
from subfit.fitting.gradient_fit import fit_by_gradient
from subfit.fitting.layers import linear_layer
from subfit.fitting.regression import check_ridge, least_squares, uncentred
from subfit.fitting.statistics import Pairs, StreamingPairs
from subfit.fitting.substitutes import FoldedMap
from subfit.model.activations import Branch


class ReplaceMe(FoldedMap):
    """x W, x what the last kept FeedForward adds, merged into its output projection (ReplaceMe, arXiv 2505.02819).

    The stream at the cut is h + x with h from before that FeedForward, and the paper's map T = I + W takes it to h + x T.
    Use it through `at_cut`. W is the least-squares map without bias; the penalty is on W, so it draws T to the identity. For
    the paper's `cosine` variant, AdamW trains W to maximise the cosine similarity of x T and x + target. It starts from the
    least-squares map and keeps the best state on a held-out tenth of the tokens; both are our choice.

    Args:
        loss: `squared` or `cosine`.
        ridge: penalty on W, relative to the mean square of the inputs.
        steps: optimiser steps, for `cosine`.
        learning_rate: at the first step, for `cosine`.
        batch_tokens: tokens in each step, for `cosine`.
        seed: of the batches and the held-out tokens, for `cosine`; the run's if not given.

    Raises:
        SubFitError: if an option is out of its range.
    """

    def __init__(
        self,
        loss: Literal["squared", "cosine"] = "squared",
        ridge: float = 1e-4,
        steps: int = 300,
        learning_rate: float = 1e-4,
        batch_tokens: int = 1024,
        seed: int | None = None,
    ) -> None:
        check_ridge(ridge)
        if loss not in ("squared", "cosine"):
            raise SubFitError(f"unknown loss {loss!r} of ReplaceMe; use squared or cosine")
        if steps < 0 or batch_tokens < 1:
            raise SubFitError(f"steps is {steps} and batch_tokens {batch_tokens}; they must be at least 0 and 1")
        self.loss = loss
        self.statistics = StreamingPairs if loss == "cosine" else StreamingMoments
        self.ridge = ridge
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_tokens = batch_tokens
        self.seed = seed

    def fit(self, branch: Branch, statistics: Moments) -> nn.Linear:
        module = linear_layer(least_squares(uncentred(statistics), self.ridge))
        if isinstance(statistics, Pairs):

            def distance(x: Tensor, y: Tensor) -> Tensor:
                x = x.float()
                return 1 - torch.cosine_similarity(x + module(x), x + y.float(), dim=-1).mean()

            pairs = statistics.inputs, statistics.targets
            fit_by_gradient(module, distance, *pairs, self.steps, self.learning_rate, self.batch_tokens, self.seed or 0)
        return module
