"""Runs a model on the calibration tokens, layer by layer, and shows the tensors at its sites."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from subfit.calibration.cache import Cache
from subfit.errors import SubFitError
from subfit.model.activations import Activations, Branch, watch
from subfit.model.discovery import find_sites
from subfit.model.offloading import loaded
from subfit.model.processes import shard_tokens
from subfit.model.residual_stream import ResidualStream, returned_lengths
from subfit.model.submodules import Site
from subfit.progress import Stage


class Calibration:
    """A model, its sites, and the tokens that it is calibrated on.

    Args:
        model: the dense causal language model, in evaluation mode.
        tokens: (windows, length), token ids; packed, without padding.
        batch_size: windows run at once.
        cache: where the moments of all sites are kept for other fits on the same model and tokens, if there may be any.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, batch_size: int = 8, cache: Cache | None = None):
        self.model = model
        self.tokens = tokens
        self.batch_size = batch_size
        self.cache = cache
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.sites = find_sites(model)
        self._returns = returned_lengths(model)
        self.memory: dict[Any, Any] = {}  # what strategies computed and others may need, such as `Trials`

    def subset(self, windows: int, length: int) -> Tensor:
        """Returns evenly spaced windows of the tokens, as many as asked for or all, each cut to its first `length` tokens.

        Raises:
            SubFitError: if there is no token to predict in them.
        """
        check_subset(windows, length)
        spaced = torch.linspace(0, len(self.tokens) - 1, min(windows, len(self.tokens))).long()
        return self.tokens[spaced, :length]

    def branch(self, site: Site) -> Branch:
        """Returns a site with its modules in the model."""
        return Branch(site, self.model)

    def stream(self) -> ResidualStream:
        """Returns the residual stream of all tokens, or of this process's share of them, before the first layer."""
        return ResidualStream(self.model, shard_tokens(self.tokens), self.batch_size, self._returns)

    @torch.no_grad()
    def watch_sites(
        self,
        sites: Iterable[Site],
        label: str,
        visit: Callable[[Site, Activations], None],
        done: Callable[[Site], None] = lambda site: None,
    ) -> None:
        """Runs the model layer by layer, up to the last of `sites`.

        Args:
            label: what the stage is called, see `subfit.progress`.
            visit: called with what passed a site in one batch; valid during the call, as the stream moves on in place.
            done: called after a site's last batch.
        """
        by_layer = {layer: list(group) for layer, group in groupby(sorted(sites, key=_layer), key=_layer)}
        stream = self.stream()
        layers = max(by_layer, default=-1) + 1
        with Stage(label, layers, "layers") as progress:
            for layer in range(layers):
                here = by_layer.get(layer, [])
                with loaded(stream.layers[layer]):
                    with ExitStack() as stack:
                        seen = [stack.enter_context(watch(self.model, site)) for site in here]
                        for _ in stream.advance():
                            for site, passed in zip(here, seen, strict=True):
                                visit(site, passed)
                    for site in here:
                        done(site)
                progress.advance()


def _layer(site: Site) -> int:
    return site.layer


def check_subset(windows: int, length: int) -> None:
    """Raises SubFitError if there is no token to predict in so many windows, cut to so many tokens."""
    if windows < 1 or length < 2:
        raise SubFitError(f"windows is {windows} and length is {length}; they must be at least 1 and 2")
