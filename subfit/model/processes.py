"""Processes that share the calibration tokens, as torchrun starts them."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchmetrics.utilities.distributed import gather_all_tensors

from subfit.errors import SubFitError
from subfit.model.submodules import decoder_layers
from subfit.progress import is_rank_zero as is_rank_zero

T = TypeVar("T")


def init_process_group(device: torch.device) -> None:
    """Initialises the process group if torchrun has started several processes: from here on, they work together.

    What is summed over tokens, by metrics of torchmetrics and by `all_reduce_sum`, is then summed over all of them.
    """
    if distributed.is_torchelastic_launched() and os.environ["WORLD_SIZE"] != "1" and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(destroy_process_group)


def destroy_process_group() -> None:
    """Destroys the process group, if there is one: from here on, each process works alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Returns once all processes that work together have called it, and what they have sent each other has arrived."""
    if is_distributed():
        distributed.barrier()


def shard_model(model: nn.Module, device: torch.device) -> None:
    """Shards the weights of the decoder layers among the processes, and moves the model to their devices.

    A layer's weights are gathered while it runs (FSDP, arXiv 2304.11277); the embedding and the head are whole everywhere.

    Raises:
        SubFitError: if there are not several processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not is_distributed():
        raise SubFitError("fsdp divides a model among several processes: torchrun --nproc-per-node 2 -m subfit.cli ...")
    model.requires_grad_(False)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in decoder_layers(model)[1]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(device)


@contextmanager
def unsharded(layer: nn.Module) -> Iterator[None]:
    """Within the context, each process has the whole weights of a decoder layer, to run a part of it by itself."""
    if isinstance(layer, FSDPModule):
        layer.unshard()
    try:
        yield
    finally:
        if isinstance(layer, FSDPModule):
            layer.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be divided among the processes as a plain one; all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_distributed() -> bool:
    """Whether several processes work together now."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def shard_tokens(tokens: Tensor) -> Tensor:
    """Returns this process's windows of the tokens (windows, length).

    Raises:
        SubFitError: if there are fewer windows than processes.
    """
    if not is_distributed():
        return tokens
    count = distributed.get_world_size()
    if len(tokens) < count:
        raise SubFitError(f"{len(tokens)} windows for {count} processes: each needs at least one window to calibrate on")
    return tokens.tensor_split(count)[distributed.get_rank()]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum of the processes' values."""
    if not is_distributed():
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values


def all_gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows of all processes (rows, d), in the order of the processes."""
    return torch.cat(gather_all_tensors(rows)) if is_distributed() else rows


def broadcast(value: T) -> T:
    """Returns the first process's value, so that rounding cannot set the processes apart."""
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]
