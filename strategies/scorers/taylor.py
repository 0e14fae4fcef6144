"""What the loss would change by without a site, to first order."""

from contextlib import ExitStack
from typing import Any

import torch

from subfit.calibration.capture import Calibration, check_subset
from subfit.model.activations import watch
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
        model: Any = calibration.model
        tokens = calibration.subset(self.windows, self.length).to(calibration.device)
        totals = torch.zeros(len(calibration.sites), dtype=torch.float64)
        trained = [p for p in model.parameters() if p.requires_grad]
        with ExitStack() as stack:
            progress = stack.enter_context(Stage("scoring", len(tokens), "windows"))
            stack.enter_context(torch.enable_grad())
            seen = [stack.enter_context(watch(model, site)) for site in calibration.sites]
            embedding = model.get_input_embeddings().register_forward_hook(lambda m, args, out: out.requires_grad_())
            stack.callback(embedding.remove)
            stack.callback(lambda: [p.requires_grad_() for p in trained])
            for p in trained:
                p.requires_grad_(False)
            for window in tokens:
                logits = model(window[None], use_cache=False).logits[0]
                loss = torch.nn.functional.cross_entropy(logits[:-1].float(), window[1:], reduction="sum")
                added = [passed.y for passed in seen]
                for index, (y, gradient) in enumerate(zip(added, torch.autograd.grad(loss, added), strict=True)):
                    totals[index] += float((gradient.float() * y.detach().float()).sum(-1).abs().sum())
                progress.advance()
        return dict(zip(calibration.sites, (totals / tokens.numel()).tolist(), strict=True))
