"""The layers before the first changed one: teacher and student are the same there, so they run once for both."""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from subfit.model.replacing import Switch
from subfit.model.submodules import decoder_layers


class UnchangedLayers:
    """The decoder layers before the first one that is changed. They have no gradients.

    Args:
        model: a causal language model of transformers.
        switches: what is changed in it.

    Attributes:
        count: number of these layers.
    """

    def __init__(self, model: nn.Module, switches: Sequence[Switch]):
        self.count = min(switch.first_layer for switch in switches)
        self._layers = list(decoder_layers(model)[1][: self.count])
        self._gave: Any = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the context, what the last of these layers gives is kept for `passed_through`.

        It is not where layers are given a mapping, in which they may leave values for later ones, such as shared keys.
        """

        def keep(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            shared = any(isinstance(value, MutableMapping) for value in (*args, *kwargs.values()))
            self._gave = None if shared else output

        hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in self._layers[-1:]]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def passed_through(self) -> Iterator[None]:
        """Within the context, these layers do not run; each gives what was kept of the last one, if it was."""
        gave, self._gave = self._gave, None
        layers = [] if gave is None else self._layers
        for layer in layers:
            layer.forward = lambda *args, **kwargs: gave
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward
