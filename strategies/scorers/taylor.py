"""What the loss would change by without a site, to first order."""

import torch
from torch import Tensor

from subfit.calibration.capture import Calibration, check_subset
from subfit.calibration.gradients import gradients_at_sites
from subfit.progress import Stage
from subfit.scorer import Scorer, Scores


class Taylor(Scorer):
    """First-order Taylor importance of what a site adds (arXiv 1906.10771; in LLM-Pruner, arXiv 2305.11627).

        score = mean over tokens of  |dL/dy . y|

    L is the next-token loss, summed over the tokens of a window. It is the one scorer that needs gradients, with respect to
    activations only: those of one window at a time are held, for all layers.

    Args:
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
    """

    def __init__(self, windows: int = 8, length: int = 256) -> None:
        check_subset(windows, length)
        self.windows = windows
        self.length = length

    def score(self, calibration: Calibration) -> Scores:
        tokens = calibration.subset(self.windows, self.length).to(calibration.device)
        totals = torch.zeros(len(calibration.sites), dtype=torch.float64)
        with Stage("scoring", len(tokens), "windows") as progress:
            for passed in gradients_at_sites(calibration.model, calibration.sites, tokens, _loss):
                for index, (seen, gradient) in enumerate(passed):
                    totals[index] += float((gradient.float() * seen.y.detach().float()).sum(-1).abs().sum())
                progress.advance()
        return dict(zip(calibration.sites, (totals / tokens.numel()).tolist(), strict=True))


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
