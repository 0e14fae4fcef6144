"""Data types: which ones a device computes in natively, and which one the weights of a model are saved in.

With `--dtype auto`, a model computes in its checkpoint's type where the device does that natively, and otherwise in float32.
Its weights then are those of the checkpoint all the same, and everything that is fitted is rounded to the checkpoint's type
when it is put into the model: what is measured is what is saved.
"""

import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.model.processes import is_rank_zero
from subfit.model.quantised import is_quantised

M = TypeVar("M", bound=nn.Module)

FLOATING = ("float32", "bfloat16", "float16", "float64")  # that models compute in
NARROW = (torch.bfloat16, torch.float16)
SIZE, REPEATS = 256, 5  # of the products that are timed where nothing is known of a processor


@dataclass(frozen=True)
class SavedTypes:
    """How the weights of a model are saved that computes in a wider type.

    Attributes:
        dtype: their type.
        wider: names of weights that the checkpoint keeps in float32 all the same.
    """

    dtype: torch.dtype
    wider: frozenset[str]


def dtype_of(name: str) -> Any:
    """Returns the torch dtype of this name; `auto` stays as it is.

    Raises:
        SubFitError: if there is no such dtype, or a model does not compute in it.
    """
    if name not in ("auto", *FLOATING):
        raise SubFitError(f"unknown dtype {name!r}; use auto, {', '.join(FLOATING[:-1])} or {FLOATING[-1]}")
    return name if name == "auto" else getattr(torch, name)


def name_of(dtype: torch.dtype) -> str:
    """Returns what options and records call a dtype."""
    return str(dtype).removeprefix("torch.")


def native(device: torch.device) -> list[str]:
    """Returns the narrow types that a device computes in natively."""
    return [name_of(dtype) for dtype in NARROW if is_native(dtype, device)]


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device computes products of this type at least as fast as in float32, instead of emulating them."""
    if dtype not in NARROW:
        return True
    if device.type == "cuda":
        return dtype is torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or _is_native_to_processor(dtype)


@cache
def _is_native_to_processor(dtype: torch.dtype) -> bool:
    """By what oneDNN, which multiplies matrices of these types on x86, and the processor say; elsewhere, measured.

    oneDNN alone also takes bfloat16 on processors with AVX-512 that emulate it; the processor alone does not know that
    oneDNN has been told to use older instructions.
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version of torch
    if platform.machine().lower() not in ("x86_64", "amd64") or "avx512_bf16" not in capabilities:
        return _is_faster_than_float32(dtype)
    if dtype is torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    instructions = capabilities["avx512_bf16"] or capabilities["amx_bf16"]
    return bool(instructions and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_faster_than_float32(dtype: torch.dtype) -> bool:
    """Times products in both types in turns; the fastest of each counts, which other work on the machine disturbs least."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], dtype: []}
    for _ in range(REPEATS):
        for kind, taken in seconds.items():
            matrix = torch.ones(SIZE, SIZE, dtype=kind)
            start = time.perf_counter()
            matrix @ matrix
            taken.append(time.perf_counter() - start)
    return min(seconds[dtype]) <= min(seconds[torch.float32])


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the type to compute in with weights of this type: the same, or float32 where the device would emulate it."""
    if is_native(dtype, device):
        return dtype
    _tell(name_of(dtype), "processor" if device.type == "cpu" else "device")
    return torch.float32


@cache
def _tell(name: str, what: str) -> None:
    """Says once that computations are in float32."""
    if is_rank_zero():
        print(
            f"subfit: this {what} does not compute in {name} natively: computing in float32, weights stay {name} "
            f"(--dtype {name} computes in it nevertheless)",
            file=sys.stderr,
        )


def compute_natively(model: Any, device: torch.device) -> None:
    """Makes a model compute in float32 if the device would emulate its type; its weights keep their values and that type.

    One whose weights are quantised computes as it is.
    """
    if is_quantised(model):
        return
    own = model.dtype
    wide = compute_dtype(own, device)
    if wide != own:
        wider = {name for name, value in model.state_dict().items() if value.is_floating_point() and value.dtype != own}
        model.to(wide).saved_types = SavedTypes(own, frozenset(wider))


def saved_dtype(model: Any) -> torch.dtype:
    """Returns the type that the weights of a model are saved in."""
    types: SavedTypes | None = getattr(model, "saved_types", None)
    own: torch.dtype = model.dtype
    return own if types is None else types.dtype


def saved_share(model: Any) -> float:
    """Returns the size of saved weights as a share of their size in memory; less than 1 if the model computes in float32
    instead of its own type."""
    return saved_dtype(model).itemsize / model.dtype.itemsize


def rounding_of(model: nn.Module) -> torch.dtype | None:
    """Returns the type that new weights of a model are rounded to, if that is not the one it computes in."""
    types: SavedTypes | None = getattr(model, "saved_types", None)
    return None if types is None else types.dtype


def rounded(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns a weight as `rounding_of` says."""
    return weight if dtype is None else weight.to(dtype)


def stream_dtype(model: Any) -> torch.dtype:
    """Returns the type of the residual stream: that of the embeddings, whatever single weights are kept in."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype


def placed(module: M, model: nn.Module, like: Tensor) -> M:
    """Returns a module as a part of a model: frozen, rounded to what is saved, on the device and in the type of a tensor."""
    module.to(like.device, rounding_of(model) or like.dtype)
    return module.to(like.dtype).requires_grad_(False)


def as_saved(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights of a model, by name, in the types that they are saved in."""
    types: SavedTypes | None = getattr(model, "saved_types", None)
    if types is None:
        return dict(weights)
    return {
        name: value.to(types.dtype) if value.is_floating_point() and name not in types.wider else value
        for name, value in weights.items()
    }


def describe_dtypes(model: Any) -> dict[str, str]:
    """Returns the types of a model's weights as they are saved, and of its computations, by which a record names them."""
    return {"weights": name_of(saved_dtype(model)), "compute": name_of(model.dtype)}
