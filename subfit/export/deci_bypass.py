"""A fitted bypass as branches of llama.cpp's architecture `deci`: a gated FeedForward, a full matrix or a constant."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.export.deci import MULTIPLE, Block
from subfit.model.modeling_subfit import Constant, KeptGroups, Product, Scale, Shared, Sum, SwiGLU, Zero

ONE = 1.278464542761074  # silu(ONE) = 1: with a gate of weight 0 and this bias, a gated FeedForward is a low-rank map


@dataclass
class Units:
    """Hidden units silu(x gate^T + gate_bias) * (x up^T + up_bias), and `down` (d, units), which reads them."""

    gate: Tensor
    gate_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor


@dataclass
class Parts:
    """What a bypass adds up: gated units, low-rank maps x a^T b^T, full maps x w^T, and a bias (d)."""

    bias: Tensor
    units: list[Units] = field(default_factory=list)
    low_rank: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    full: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def blocks_of(bypass: nn.Module, norm: Tensor | None, width: int) -> list[Block]:
    """Returns the branches that compute a bypass, of which all but the first are constants.

    Args:
        bypass: what stands in the place of a branch.
        norm: (d), weight of the norm that it reads; None if it reads the residual stream itself.
        width: d.

    Raises:
        SubFitError: if they cannot compute it; the message says what, but not where.
    """
    parts = _parts(bypass, width)
    if not (parts.units or parts.low_rank or parts.full):
        return _constant(parts.bias)
    if norm is None:
        raise SubFitError("its bypass reads the residual stream before the norm; fit one that reads the branch's input")
    rank = sum(len(a) for a, _ in parts.low_rank)
    if parts.units or (not parts.full and 3 * _padded(rank) < width):  # else the product takes fewer parameters
        return [Block("ffn", _feed_forward(parts, norm))]
    weight = sum((b.double() @ a.double() for a, b in parts.low_rank), sum(w.double() for w in parts.full))
    matrix = Block("matrix", {"attn_norm.weight": norm, "attn_output.weight": torch.as_tensor(weight).float()})
    return [matrix, *_constant(parts.bias)]


def _constant(bias: Tensor) -> list[Block]:
    return [Block("constant", {"bias": bias})] if bias.any() else []


def _padded(units: int) -> int:
    return -(-units // MULTIPLE) * MULTIPLE


def _feed_forward(parts: Parts, norm: Tensor) -> dict[str, Tensor]:
    """The tensors of one FeedForward that computes all parts; units of zeros fill it up."""
    units = [*parts.units, *(_ungated(a, b) for a, b in parts.low_rank)]
    units += [_ungated(w, torch.eye(len(w))) for w in parts.full]
    missing = -sum(len(found.up) for found in units) % MULTIPLE
    units.append(_ungated(torch.zeros(missing, len(norm)), torch.zeros(len(norm), missing)))
    tensors = {"ffn_norm.weight": norm}
    for part in ("gate", "up"):
        tensors[f"ffn_{part}.weight"] = torch.cat([getattr(found, part) for found in units])
        tensors[f"ffn_{part}.bias"] = torch.cat([getattr(found, f"{part}_bias") for found in units])
    tensors["ffn_down.weight"] = torch.cat([found.down for found in units], 1)
    tensors["ffn_down.bias"] = parts.bias
    return {name: value for name, value in tensors.items() if value.any() or not name.endswith("bias")}


def _ungated(a: Tensor, b: Tensor) -> Units:
    return Units(torch.zeros_like(a), torch.full((len(a),), ONE), a, torch.zeros(len(a)), b)


def _parts(module: nn.Module, width: int) -> Parts:
    """What a module adds up."""
    if isinstance(module, Shared):
        return _parts(module.owner[0], width)
    if isinstance(module, Zero):
        return Parts(torch.zeros(width))
    if isinstance(module, Constant):
        return Parts(_float(module.bias))
    if isinstance(module, Sum):
        found = [_parts(child, width) for child in module]
        total = Parts(sum((part.bias for part in found), torch.zeros(width)))
        for part in found:
            total.units += part.units
            total.low_rank += part.low_rank
            total.full += part.full
        return total
    if isinstance(module, SwiGLU):
        gate, up, down = (_linear(layer) for layer in (module.gate, module.up, module.down))
        return Parts(down[1], units=[Units(*gate, *up, down[0])])
    if isinstance(module, KeptGroups):
        raise SubFitError("its bypass keeps some of the Attention's heads beside a map, which deci has no layer for")
    affine = _affine(module)
    if affine is not None:
        factors, bias = affine
        if len(factors) == 2:
            return Parts(bias, low_rank=[(factors[0], factors[1])])
        return Parts(bias, full=[torch.linalg.multi_dot(factors[::-1]) if len(factors) > 1 else factors[0]])
    if type(module) is nn.Sequential and len(module) == 2 and isinstance(module[0], Product):
        hidden, output = _gated(module[0]), _affine(module[1])
        if hidden is not None and output is not None and len(output[0]) == 1:
            return Parts(output[1], units=[Units(*hidden, output[0][0])])
    raise SubFitError(f"its bypass is made of {_unknown(module)}, not of linear layers, constants and units with SiLU")


def _affine(module: nn.Module) -> tuple[list[Tensor], Tensor] | None:
    """The matrices (out, in) that a linear map applies one after the other, and its bias; None if it is none."""
    if isinstance(module, Shared):
        return _affine(module.owner[0])
    if isinstance(module, nn.Linear):
        weight, bias = _linear(module)
        return [weight], bias
    if isinstance(module, Scale):
        return [torch.diag(_float(module.weight).expand(module.width))], _float(module.bias)
    if type(module) is not nn.Sequential or len(module) == 0:
        return None
    factors: list[Tensor] = []
    bias = torch.zeros(())
    for child in module:
        step = _affine(child)
        if step is None:
            return None
        for weight in step[0]:
            bias = weight @ bias if bias.ndim else bias
        bias = bias + step[1]
        factors += step[0]
    return factors, bias


def _gated(product: Product) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Weight and bias of the gate, and of the other factor, of silu(gate(x)) * up(x)."""
    for gate, up in (tuple(product), tuple(product)[::-1]) if len(product) == 2 else ():
        if type(gate) is nn.Sequential and len(gate) == 2 and isinstance(gate[1], nn.SiLU):
            of_gate, of_up = _affine(gate[0]), _affine(up)
            if of_gate and of_up and len(of_gate[0]) == len(of_up[0]) == 1:
                return of_gate[0][0], of_gate[1], of_up[0][0], of_up[1]
    return None


def _unknown(module: nn.Module) -> str:
    """The names of the layers that a module is made of."""
    leaves = [type(m).__name__ for m in module.modules() if not list(m.children())]
    return " and ".join(dict.fromkeys(leaves))


def _linear(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    bias = torch.zeros(layer.out_features) if layer.bias is None else _float(layer.bias)
    return _float(layer.weight), bias


def _float(value: Tensor) -> Tensor:
    return value.detach().float().cpu()
