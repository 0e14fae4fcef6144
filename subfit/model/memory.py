"""How much memory there is for the weights of a model."""

import ctypes
import re
from typing import Literal, get_args

import psutil
import torch

from subfit.errors import SubFitError

DeviceMap = Literal["device", "disk", "auto"]
LARGE = 2**20  # bytes
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
SHARE = 0.5  # of the free memory, for the weights; the rest is for the stream, the moments and what else is computed


def check_device_map(device_map: str, max_memory: str | None) -> None:
    """Raises SubFitError if there is no such place for weights, or `max_memory` is no size, or has no effect."""
    if device_map not in get_args(DeviceMap):
        raise SubFitError(f"device_map is {device_map!r}; use device, disk or auto")
    if max_memory is not None:
        size_of(max_memory)
        if device_map != "auto":
            raise SubFitError(f"max_memory is for device_map auto, and it is {device_map}")


def exceeds(size: int, max_memory: str | None, device: torch.device) -> bool:
    """Whether weights of this size, in bytes, take more than `max_memory`, or half of what is free if that is None."""
    return size > (SHARE * free_memory(device) if max_memory is None else size_of(max_memory))


def size_of(text: str) -> int:
    """Returns the bytes of a size such as `8GB` or `512MiB`.

    Raises:
        SubFitError: if it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B", text, re.IGNORECASE)
    if found is None:
        raise SubFitError(f"max_memory is {text!r}; it must be a size such as 8GB or 512MiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1))


def free_memory(device: torch.device) -> int:
    """Returns the bytes of memory that are free on a device, in main memory within the limits of the process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    return min([free, *_left_by_limits()])


def _left_by_limits() -> list[int]:
    """What limits such as `ulimit -v` leave of the memory of the process."""
    process = psutil.Process()
    if not hasattr(psutil, "RLIMIT_AS"):  # not on every system
        return []
    used = process.memory_info()
    limits = {psutil.RLIMIT_AS: used.vms, psutil.RLIMIT_DATA: used.data}
    return [process.rlimit(kind)[0] - taken for kind, taken in limits.items() if process.rlimit(kind)[0] >= 0]


def return_freed_memory() -> None:
    """Has glibc give large tensors back to the system once they are freed, from here on.

    By default it keeps some of up to 32 MiB, between others that are in use: with each layer read, the process grows.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every libc
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
