"""One forward pass over two tokens, and what the modules of each decoder layer did in it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from subfit.errors import SubFitError
from subfit.model.refusals import refused_if_failing
from subfit.model.submodules import decoder_layers, first_tensor, main_output

CONTEXT = ("mask", "position", "rotary", "past", "cache")  # parts of the names of what only mixers of tokens are given


@dataclass
class Call:
    """One call of a module within a decoder layer.

    Attributes:
        path: of the module.
        read, gave: the tensors themselves.
        before, after: copies of them, in float64 on the CPU, from the moments when they were read and given.
        returns: length of the tuple that it returned; 0 for a bare tensor.
        began, ended: places in the order of events within the layer.
        slot: index of the cache slot that it wrote to, if it did.
        keys: whether keys and values are what it wrote there.
        groups: number of heads of these keys; 0 where they have none.
        mixes: whether it was given a mask, positions or a cache.
        passed_on: whether it changed another argument than the cache, which other layers may read.
    """

    path: str
    read: Tensor
    before: Tensor
    gave: Tensor
    after: Tensor
    returns: int
    began: int
    ended: int
    slot: int | None = None
    keys: bool = False
    groups: int = 0
    mixes: bool = False
    passed_on: bool = False


@dataclass
class Layer:
    """What happened in one decoder layer: its own call, those of its children, and of the linear layers within them."""

    path: str
    calls: list[Call] = field(default_factory=list)
    events: int = 0

    @property
    def own(self) -> Call:
        """The call of the layer itself."""
        return next(call for call in self.calls if call.path == self.path)

    @property
    def children(self) -> list[Call]:
        """The calls of the layer's children, in the order in which they ended."""
        return [call for call in self.calls if call.path.rpartition(".")[0] == self.path]


def probe_tokens(model: Any, count: int = 2) -> Tensor:
    """Returns a few token ids that are not special ones, (1, count)."""
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.linspace(rows // 3, rows // 2, count).long()[None]
    return tokens.to(next(model.parameters()).device)


@torch.no_grad()
def record_layers(model: Any) -> list[Layer]:
    """Returns what the modules of each decoder layer did in a pass over two tokens.

    Raises:
        SubFitError: if the model does not run, or a layer was not called once, with a tensor.
    """
    root, layers = decoder_layers(model)
    recorded = [Layer(f"{root}.{index}") for index in range(len(layers))]
    with ExitStack() as stack:
        for found, layer in zip(recorded, layers, strict=True):
            for path, module in _recorded_modules(found.path, layer):
                recorder = _Recorder(found, path)
                for hook in (
                    module.register_forward_pre_hook(recorder.before, with_kwargs=True),
                    module.register_forward_hook(recorder.after, with_kwargs=True),
                ):
                    stack.callback(hook.remove)
        with refused_if_failing(model, "on two tokens"):
            model(probe_tokens(model), use_cache=True)
    for index, found in enumerate(recorded):
        if sum(call.path == found.path for call in found.calls) != 1:
            raise SubFitError(f"layer {index} of {type(model).__name__} is not called once, with the residual stream first")
    return recorded


def _recorded_modules(path: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layer itself, its children, and the linear layers within these."""
    yield path, layer
    for name, module in layer.named_modules():
        if name and ("." not in name or isinstance(module, nn.Linear | Conv1D)):
            yield f"{path}.{name}", module


class _Recorder:
    """Hooks that append each call of a module to those of its layer."""

    def __init__(self, layer: Layer, path: str):
        self._layer, self._path = layer, path
        self._began = 0
        self._before = torch.empty(0)
        self._states: dict[tuple[int, str], Any] = {}
        self._others: list[Any] = []

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = first_tensor(args, kwargs)
        self._began = self._tick()
        if read is not None:
            self._before = _copy(read)
            self._states = _states(args, kwargs)
            self._others = _contents(args, kwargs)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read, gave = first_tensor(args, kwargs), main_output(output)
        ended = self._tick()
        if read is None or not isinstance(gave, Tensor):
            return
        written = {key for key, value in _states(args, kwargs).items() if self._states.get(key) != value}
        call = Call(self._path, read, self._before, gave, _copy(gave), _length(output), self._began, ended)
        call.slot = min((slot for slot, _ in written), default=None)
        call.keys = any(name in ("keys", "values") for _, name in written)
        call.groups = _heads(args, kwargs, call.slot) if call.keys else 0
        call.mixes = (
            bool(written) or any(part in name for name in kwargs for part in CONTEXT) or _cache(args, kwargs) is not None
        )
        call.passed_on = self._others != _contents(args, kwargs)
        self._layer.calls.append(call)

    def _tick(self) -> int:
        self._layer.events += 1
        return self._layer.events


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64, copy=True) if tensor.is_floating_point() else tensor.detach().clone()


def _length(output: Any) -> int:
    return len(output) if isinstance(output, tuple) else 0


def _cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)


def _heads(args: tuple[Any, ...], kwargs: dict[str, Any], slot: int | None) -> int:
    """How many heads the keys have in a slot of the cache, (batch, heads, tokens, size); 0 if they are of another shape."""
    cache = _cache(args, kwargs)
    keys = None if cache is None or slot is None else getattr(cache.layers[slot], "keys", None)
    return keys.shape[1] if isinstance(keys, Tensor) and keys.ndim == 4 else 0


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[tuple[int, str], Any]:
    """What each slot of the cache among a module's arguments holds: a fingerprint of each tensor, by slot and name."""
    cache = _cache(args, kwargs)
    found = {}
    for index, slot in enumerate(getattr(cache, "layers", ())):
        for name, value in vars(slot).items():
            tensors = value.values() if isinstance(value, dict) else [value]
            marks = [(id(t), t._version, t.shape) for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
            if marks:
                found[index, name] = marks
    return found


def _contents(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The keys and lengths of the lists and mappings among a module's arguments."""
    values = [v for v in (*args, *kwargs.values()) if isinstance(v, list | Mapping)]
    return [sorted(map(str, value)) if isinstance(value, Mapping) else len(value) for value in values]
