"""A model with a key-value cache of a fixed size among its buffers, as `torch.export` needs it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.cache_utils import StaticSlidingWindowLayer

from subfit.errors import SubFitError


class ModelWithStaticCache(nn.Module):
    """A causal language model and its cache, which has no buffers for the Attentions that were replaced.

        module = ModelWithStaticCache(model, batch_size=1, length=256)
        program = torch.export.export(module, (tokens, positions), strict=False)

    Args:
        model: of transformers, dense or compressed.
        batch_size: sequences in the cache.
        length: the most tokens of a sequence.

    Raises:
        SubFitError: if a sliding window of the model is shorter than `length`: its cache cannot be exported.
    """

    def __init__(self, model: Any, batch_size: int, length: int):
        super().__init__()
        self.model = model
        cache = StaticCache(config=model.config, max_cache_len=length)
        for layer in cache.layers:
            if isinstance(layer, StaticSlidingWindowLayer) and layer.max_cache_len < length:
                raise SubFitError(f"length is {length}, but the model has a sliding window of {layer.max_cache_len} tokens")
        with torch.no_grad():  # one token gives each layer its shape, and empties the slots of replaced Attentions
            model(torch.zeros((batch_size, 1), dtype=torch.long, device=model.device), past_key_values=cache)
        cache.reset()
        self._cache = cache
        layers: list[Any] = cache.layers
        self._held = [layer for layer in layers if layer.keys is not None]
        for i, layer in enumerate(self._held):
            for name in ("keys", "values", "cumulative_length"):
                self.register_buffer(f"{name}_{i}", getattr(layer, name), persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Reads tokens (batch, n) at `positions` (n), after what it has read before them; returns logits (batch, n, v)."""
        for layer in self._held:
            layer.cumulative_length.copy_(positions[0])
        found: Any = self.model(tokens, position_ids=positions[None], past_key_values=self._cache, use_cache=True)
        logits: Tensor = found.logits
        return logits
