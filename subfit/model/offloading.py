"""Models larger than the device: the weights of decoder layers stay on the disk, and are read while their layer runs."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from safetensors import safe_open
from torch import Tensor, nn
from transformers import modeling_utils
from transformers.integrations import accelerate as integration

from subfit.errors import SubFitError
from subfit.model.dtypes import compute_dtype
from subfit.model.memory import DeviceMap, check_device_map, exceeds, return_freed_memory
from subfit.model.quantised import SECTION, configuration_of, quantisation_of, read_dequantised, read_quantised
from subfit.model.sizes import weight_bytes
from subfit.model.submodules import decoder_layers
from subfit.model.weights import read_weights

WEIGHTS = "_weights_on_disk"  # attribute of a decoder layer whose weights are


@dataclass(frozen=True)
class _Weight:
    """A weight of a decoder layer that is on the disk.

    Attributes:
        module, name: where it belongs.
        empty: what stands there while it is not in memory, on the device `meta`; of its shape and type.
        file, key: where it is.
    """

    module: nn.Module
    name: str
    empty: nn.Parameter
    file: str
    key: str

    def put(self, device: torch.device) -> None:
        """Reads the weight, unless it is in memory."""
        if self.module._parameters[self.name] is self.empty:
            with _open(self.file) as weights:
                value = weights.get_tensor(self.key)
            self.module._parameters[self.name] = nn.Parameter(value.to(device, self.empty.dtype), requires_grad=False)

    def drop(self) -> None:
        self.module._parameters[self.name] = self.empty


class LayerWeights:
    """The weights of one decoder layer, which are in memory while anyone needs them.

    Args:
        layer: the layer.
        weights: those of its weights that are on the disk.
        device: where they are needed.
    """

    def __init__(self, layer: nn.Module, weights: list[_Weight], device: torch.device):
        self._layer, self._weights, self._device = layer, weights, device
        self._users = 0
        layer.register_forward_pre_hook(lambda *_: self.acquire())
        layer.register_forward_hook(lambda *_: self.release(), always_call=True)  # also where the pass ends half-way

    def acquire(self) -> None:
        """Reads the weights of the modules that are in the layer now; see `release`."""
        self._users += 1
        present = set(self._layer.modules())
        for weight in self._weights:
            if weight.module in present:
                weight.put(self._device)

    def release(self) -> None:
        """Frees the weights, if nobody needs them any more."""
        self._users -= 1
        if not self._users:
            for weight in self._weights:
                weight.drop()


@contextmanager
def loaded(*layers: nn.Module) -> Iterator[None]:
    """Within the context, the weights of some decoder layers are in memory, whether they are on the disk or not."""
    on_disk = [layer.__dict__[WEIGHTS] for layer in layers if WEIGHTS in layer.__dict__]
    with ExitStack() as stack:
        for weights in on_disk:
            weights.acquire()
            stack.callback(weights.release)
        yield


def is_offloaded(model: nn.Module) -> bool:
    """Whether the weights of a model's decoder layers are on the disk."""
    return any(WEIGHTS in layer.__dict__ for layer in decoder_layers(model)[1])


def check_resident(model: nn.Module, what: str) -> None:
    """Raises SubFitError if a model's weights are on the disk, for what needs all of them at once."""
    if is_offloaded(model):
        raise SubFitError(f"{what} needs all weights on the device, and these are on the disk; leave out device_map")


@dataclass(frozen=True)
class Loader:
    """What makes a model.

    Attributes:
        with_weights: a `from_pretrained` of transformers.
        without_weights: makes a model of the same architecture without reading any.
    """

    with_weights: Callable[..., Any]
    without_weights: Callable[[], Any]


@dataclass(frozen=True)
class Places:
    """Where the weights of a model are to be.

    Attributes:
        device: where it computes.
        device_map, max_memory: see `config.Options`.
        dequantised: whether quantised weights are to be those that they stand for; see `model.quantised`.
    """

    device: torch.device
    device_map: DeviceMap = "device"
    max_memory: str | None = None
    dequantised: bool = False

    def read(self, loader: Loader, name: str, *, dtype: Any, **options: Any) -> Any:
        """Returns the model of a name that a loader makes, in main memory, or its decoder layers on the disk.

        Raises:
            SubFitError: as `read_weights` and `exceeds`, or if quantised weights are not to be on the device.
        """
        check_device_map(self.device_map, self.max_memory)
        content = configuration_of(name)
        if self.device_map != "device" and content.get(SECTION):
            raise SubFitError("its weights are quantised, and are loaded as a whole; leave out device_map")
        section = quantisation_of(content) if self.dequantised else None
        if section is None:
            return self._read(loader, name, dtype=dtype, **options)
        read = read_quantised if dtype == "auto" else read_dequantised
        return read(partial(self._read, loader), section, name, dtype=dtype, **options)

    def _read(self, loader: Loader, *args: Any, dtype: Any, **options: Any) -> Any:
        if self.device_map != "device":
            with torch.device("meta"):
                like = loader.without_weights()
            own = like.dtype if dtype == "auto" else dtype
            size = weight_bytes(like) * compute_dtype(own, self.device).itemsize // like.dtype.itemsize
            if self.device_map == "disk" or exceeds(size, self.max_memory, self.device):
                return read_offloaded(loader.with_weights, like, self.device, *args, dtype=dtype, **options)
        return read_weights(loader.with_weights, *args, dtype=dtype, **options)


def read_offloaded(load: Callable[..., Any], like: nn.Module, device: torch.device, *args: Any, **options: Any) -> Any:
    """Returns the model that a `from_pretrained` of transformers loads, with the weights of its decoder layers on the disk.

    They stay in the checkpoint's own files; those that transformers converts, such as the experts of some mixtures, are
    written to a temporary folder. The embeddings, the head and all buffers are on the device.

    Args:
        load, args, options: see `read_weights`.
        like: a model of this architecture, without weights.
        device: where the model computes.
    """
    return_freed_memory()
    layers, _ = decoder_layers(like)
    folder = tempfile.TemporaryDirectory(prefix="subfit-weights-")
    with _files_are_not_mapped():
        where = dict(_places(like, "", layers, device))
        model = read_weights(load, *args, device_map=where, offload_folder=folder.name, **options)
    for layer in model.get_submodule(layers):
        layer.__dict__[WEIGHTS] = LayerWeights(layer, list(_weights_of(layer)), device)
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
            del module.forward  # which accelerate has made an attribute
    del model.hf_device_map
    model.folder_of_weights = folder  # which goes with the model
    return model


def _places(module: nn.Module, path: str, layers: str, device: torch.device) -> Iterator[tuple[str, Any]]:
    """Where everything is, by path: the list of layers on the disk, and what is beside it on the device."""
    if path == layers or not f"{layers}.".startswith(path):
        yield path, "disk" if path == layers else device
        return
    prefix = f"{path}." if path else ""
    yield from ((f"{prefix}{name}", device) for name in (*module._parameters, *module._buffers))
    for name, child in module.named_children():
        yield from _places(child, f"{prefix}{name}", layers, device)


def _weights_of(layer: nn.Module) -> Iterator[_Weight]:
    """The weights that accelerate reads from the disk, by what its hooks hold."""
    for module in layer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                hook: Any = module._hf_hook
                files = hook.weights_map
                entry = files.dataset.index[f"{files.prefix}{name}"]
                yield _Weight(module, name, parameter, entry["safetensors_file"], entry.get("weight_name", name))


def _open(file: Any, *_: Any, **__: Any) -> Any:
    """Opens a file of weights that are read one by one.

    It is not mapped: a mapping of the whole file counts against limits of the memory of a process, such as `ulimit -v`.
    """
    return safe_open(file, framework="pt", backend="pread")


@contextmanager
def _files_are_not_mapped() -> Iterator[None]:
    """Within the context, transformers opens files of weights in the same way."""
    before = {module: module.safe_open for module in (modeling_utils, integration)}
    try:
        for module in before:
            module.safe_open = _open  # type: ignore[attr-defined]
        yield
    finally:
        for module, opened in before.items():
            module.safe_open = opened  # type: ignore[attr-defined]


def state_parts(model: Any) -> Iterator[dict[str, Tensor]]:
    """Yields the state dict of a model: whole, or what is outside of its decoder layers, and then layer by layer.

    Weights on the disk are in memory only until the next part is asked for.
    """
    if not is_offloaded(model):
        yield model.state_dict()
        return
    root, layers = decoder_layers(model)
    yield {name: value for name, value in model.state_dict().items() if not name.startswith(f"{root}.")}
    for index, layer in enumerate(layers):
        with loaded(layer):
            yield {f"{root}.{index}.{name}": value for name, value in layer.state_dict().items()}
