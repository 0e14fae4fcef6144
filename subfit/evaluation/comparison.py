"""Compares a compressed model with the dense one, on tokens that it was not calibrated on."""

from collections.abc import Collection
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from subfit.calibration.cache import Cache
from subfit.evaluation.divergence import summary, window_sums
from subfit.evaluation.perplexity import perplexity_intervals
from subfit.model.replacing import Switch
from subfit.model.residual_stream import ResidualStream
from subfit.progress import Stage


class Comparison:
    """Compares a model in which modules are exchanged with the dense one that it was, without a second copy of the weights.

    The dense stream of the evaluation tokens is kept on disk before each layer: any number of selections can be compared,
    and the layers before the first change are not run again for any of them.

    Args:
        model: the dense causal language model.
        tokens: (windows, length), packed without padding.
        batch_size: windows run at once.

    Attributes:
        tokens: (windows, length), what it compares on.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, tokens: Tensor, batch_size: int = 4):
        self.tokens = tokens
        self._batch_size = batch_size
        self._folder = TemporaryDirectory(prefix="subfit-evaluation-")
        self._dense = ResidualStream(model, tokens, batch_size)
        self._cache = Cache(self._folder.name, str(self._dense.hidden.device))
        with Stage("evaluating the dense model", len(self._dense.layers), "layers") as progress:
            while self._dense.position < len(self._dense.layers):
                self._cache.put(str(self._dense.position), {"hidden": self._dense.hidden})
                self._dense.step()
                progress.advance()

    @torch.no_grad()
    def measure(self, switches: Collection[Switch]) -> dict[str, Any]:
        """Returns how the model, with these switches on, compares with the dense one.

        The fields are those of `divergence.summary` and of `perplexity.perplexity_intervals`; and `window_losses`, the mean
        loss of each window in nats, by which two compressed models are compared on the same windows.
        """
        first = min((switch.first_layer for switch in switches), default=len(self._dense.layers))
        stream = self._dense.fork()
        if first < len(stream.layers):
            stream.position, stream.hidden = first, self._cache.load(str(first))["hidden"]
        with Stage("evaluating", len(stream.layers), "layers", done=stream.position, line=False) as progress:
            while stream.position < len(stream.layers):
                stream.step()
                progress.advance()
        compressed, dense = iter(stream.batches), iter(stream.batches)
        sums = window_sums(
            lambda batch: stream.logits(next(compressed)),
            stream.tokens,
            lambda batch: self._dense.logits(next(dense)),
            self._batch_size,
        )
        losses = (sums["nll"] / sums["tokens"]).tolist()
        return summary(sums) | perplexity_intervals(sums) | {"window_losses": [round(loss, 6) for loss in losses]}
