"""The residual stream of all calibration tokens, advanced through the decoder one layer at a time."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from subfit.errors import SubFitError
from subfit.model.offloading import loaded
from subfit.model.recording import probe_tokens
from subfit.model.submodules import decoder_layers, main_output


class _PassThrough(nn.Module):
    """Stands where a decoder layer stands and records its arguments; gives on the stream as it is, or another one.

    Args:
        layer: the decoder layer.
        returns: length of the tuple that it returns; 0 for a bare tensor.
        instead: what is given on instead of the stream.
    """

    stream: torch.Tensor
    arguments: Any

    def __init__(self, layer: nn.Module, returns: int, instead: torch.Tensor | None = None):
        super().__init__()
        self.returns = returns
        self.instead = instead
        for name, value in vars(layer).items():  # plain attributes that the model reads from its layers
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            self.stream, *others = args
        else:  # by name
            name, self.stream = next(iter(kwargs.items()))
            others, kwargs = [], {key: value for key, value in kwargs.items() if key != name}
        self.arguments = tuple(others), kwargs
        given = self.stream if self.instead is None else self.instead
        return (given,) + (None,) * (self.returns - 1) if self.returns else given


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _equal(a: Any, b: Any) -> bool:
    """Whether two arguments of a layer are the same; what is no tensor counts as such."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return True


def _differ(found: list[Arguments], others: list[Arguments]) -> bool:
    """Whether a tensor among the arguments of a layer is another one."""
    return not all(_equal(a, b) for a, b in zip(tree_leaves(found), tree_leaves(others), strict=True))


def _mappings(arguments: list[Arguments]) -> dict[str, MutableMapping[Any, Any]]:
    """The mappings that all layers are given by name, in which earlier layers leave values for later ones."""
    first, *others = (kwargs for _, kwargs in arguments)
    named = {name: value for name, value in first.items() if isinstance(value, MutableMapping)}
    return {name: value for name, value in named.items() if all(kwargs.get(name) is value for kwargs in others)}


def _first(value: Any, count: int, size: int) -> Any:
    """The part of a layer's argument that belongs to the first `count` windows of a batch of `size`."""
    return value[:count] if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == size else value


@torch.no_grad()
def returned_lengths(model: Any) -> list[int]:
    """Returns the length of the tuple that each layer returns; 0 for a bare tensor."""
    _, layers = decoder_layers(model)
    lengths = dict.fromkeys(layers, 0)

    def see(layer: nn.Module, args: Any, output: Any) -> None:
        lengths[layer] = len(output) if isinstance(output, tuple) else 0

    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        model.base_model(probe_tokens(model), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return list(lengths.values())


class ResidualStream:
    """The stream that enters decoder layer `position`, for every calibration token.

    The arguments that each layer needs besides (mask, rotary embedding) are taken from the model's own forward pass, with
    the layers passed through, so that no architecture is implemented here a second time. Only the stream is kept for each
    token: its memory does not depend on the depth of the model. Arguments that depend on the tokens, such as the inputs for
    each layer of Gemma 4 E2B, are computed anew for each batch; what layers put into a mapping among their arguments, such
    as keys that later layers share, is carried on for each batch.

    Args:
        model: a causal language model, in evaluation mode.
        tokens: (windows, length), token ids; packed, without padding.
        batch_size: windows run at once.
        returns: see `returned_lengths`, by which it is found if not given.
    """

    def __init__(self, model: Any, tokens: torch.Tensor, batch_size: int, returns: list[int] | None = None):
        self.model = model
        self.tokens = tokens.to(next(model.parameters()).device)
        self._root, self.layers = decoder_layers(model)
        self.position = 0
        self.batches = [slice(i, min(i + batch_size, len(tokens))) for i in range(0, len(tokens), batch_size)]
        self._arguments: dict[int, list[Arguments]] = {}  # by the number of windows
        self._carried: dict[int, dict[str, MutableMapping[Any, Any]]] = {}  # by the first window of a batch
        self._returns = returns or returned_lengths(model)
        for batch in self.batches:
            stream, arguments = self._pass_through(self.tokens[batch])
            if batch.start == 0:
                self.hidden = stream.new_empty((*tokens.shape, stream.shape[-1]))
            self.hidden[batch] = stream
            self._arguments.setdefault(len(stream), arguments)
            self._carried[batch.start] = {name: copy(its) for name, its in _mappings(arguments).items()}
        others = (self.tokens[self.batches[0]] + 1) % model.get_input_embeddings().weight.shape[0]
        self._depends_on_tokens = _differ(self._arguments[len(others)], self._pass_through(others)[1])

    @torch.no_grad()
    def _pass_through(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Arguments]]:
        """The stream before the first layer, and the arguments that each layer gets besides."""
        with self._standing_in() as recorders:
            self.model.base_model(tokens, use_cache=False)  # without the head
            return recorders[0].stream, [recorder.arguments for recorder in recorders]

    @contextmanager
    def _standing_in(self, instead: torch.Tensor | None = None) -> Iterator[list[_PassThrough]]:
        """Within the context, other modules stand in the places of the model's layers, and give on a stream."""
        modules = [_PassThrough(layer, n, instead) for layer, n in zip(self.layers, self._returns, strict=True)]
        self.model.set_submodule(self._root, nn.ModuleList(modules))
        try:
            yield modules
        finally:
            self.model.set_submodule(self._root, self.layers)

    def fork(self) -> "ResidualStream":
        """Returns a second stream at the same position, which can be advanced through another version of the layers."""
        other = object.__new__(ResidualStream)
        carried = {start: {name: copy(its) for name, its in values.items()} for start, values in self._carried.items()}
        other.__dict__.update(self.__dict__, hidden=self.hidden.clone(), _carried=carried)
        return other

    def run(self, batch: slice) -> torch.Tensor:
        """Runs the current layer on one batch and returns the stream after it, (batch, length, d)."""
        windows, layer = self.hidden[batch], self.layers[self.position]
        if not self._depends_on_tokens and not self._carried[batch.start]:
            return self.apply(layer, windows)
        found = self._arguments[len(windows)] if not self._depends_on_tokens else self._pass_through(self.tokens[batch])[1]
        args, kwargs = found[self.position]
        return main_output(layer(windows, *args, **{**kwargs, **self._carried[batch.start]}))

    def apply(self, layer: nn.Module, windows: torch.Tensor) -> torch.Tensor:
        """Runs a layer in the place of the current one on some windows, no more than a batch; (windows, length, d).

        Raises:
            SubFitError: if it needs to know which windows these are.
        """
        if self._depends_on_tokens or any(mapping for named in self._carried.values() for mapping in named.values()):
            raise SubFitError("a layer whose arguments depend on the tokens cannot be run by itself, nor be retrained")
        size = min(size for size in self._arguments if size >= len(windows))
        args, kwargs = self._arguments[size][self.position]
        if size != len(windows):
            args, kwargs = tree_map(lambda value: _first(value, len(windows), size), (args, kwargs))
        return main_output(layer(windows, *args, **kwargs))

    def logits(self, batch: slice) -> torch.Tensor:
        """Returns what the model's head makes of the stream after the last layer, (batch, length, vocabulary)."""
        assert self.position == len(self.layers)
        with self._standing_in(self.hidden[batch]):
            return self.model(self.tokens[batch], use_cache=False).logits

    def step(self) -> None:
        """Moves all tokens through the current layer."""
        for _ in self.advance():
            pass

    def advance(self) -> Iterator[slice]:
        """Moves all tokens through the current layer; yields each batch once it was run, when hooks have seen it.

        The batch is overwritten only after that: what was seen before the layer is still as it was.

        Raises:
            SubFitError: if the layer's output is not finite.
        """
        with loaded(self.layers[self.position]):
            for batch in self.batches:
                after = self.run(batch)
                if not after.isfinite().all():
                    raise SubFitError(f"the residual stream after layer {self.position} has NaN or infinite values")
                yield batch
                self.hidden[batch] = after
        self.position += 1
