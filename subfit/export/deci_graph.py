"""What llama.cpp computes of a plan for its architecture `deci`, in torch: to check a plan before it is written."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

from subfit.export.deci import Layer, Plan, unsupported

TOKENS = 16
REACH = 4096  # positions up to which the rotary embedding is compared; beyond, the angles themselves are rounded
TOLERANCE = 1e-3  # of the logits' deviation from their mean


@torch.no_grad()
def check_plan(plan: Plan, model: Any) -> None:
    """Raises SubFitError unless a plan computes what the model does, on a few tokens that lie far apart.

    Both in float32: in fewer bits, a real model is so far from itself that a wrong plan would not be seen.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(plan.embedding), (1, TOKENS), generator=generator)
    positions = torch.arange(TOKENS)[None] * max((min(plan.context, REACH) - 1) // TOKENS, 1)
    given = {"input_ids": tokens, "position_ids": positions}
    given["attention_mask"] = torch.ones_like(tokens)  # else positions that lie far apart mean several texts
    logits = (
        model(use_cache=False, **{name: value.to(model.device) for name, value in given.items()}).logits[0].float().cpu()
    )
    deviation = (logits - logits.mean(-1, keepdim=True)).norm()
    error = float((plan_logits(plan, tokens[0], positions[0]) - logits).norm() / deviation)
    if not error < TOLERANCE:
        raise unsupported(f"of {type(model).__name__} it would compute other logits, off by {error:.2g} of their deviation")


def plan_logits(plan: Plan, tokens: Tensor, positions: Tensor) -> Tensor:
    """Returns the logits (n, tokens) of `tokens` (n) at `positions` (n), each of which sees those before it, in float32."""
    weights = plan.embedding.cpu()
    x = embedding(tokens, weights).float()
    for layer in plan.layers:
        x = _layer(layer, plan, x, positions)
    return linear(_norm(x, plan.norm, plan), _float(weights if plan.output is None else plan.output))


def _layer(layer: Layer, plan: Plan, x: Tensor, positions: Tensor) -> Tensor:
    if layer.heads:
        z = _norm(x, layer.tensors["attn_norm.weight"], plan)
        x = x + _linear(_attended(layer, plan, z, positions) if layer.kv_heads else z, layer, "attn_output")
    z = _norm(x, layer.tensors["ffn_norm.weight"], plan)
    return x + _linear(silu(_linear(z, layer, "ffn_gate")) * _linear(z, layer, "ffn_up"), layer, "ffn_down")


def _attended(layer: Layer, plan: Plan, z: Tensor, positions: Tensor) -> Tensor:
    """What the heads of an Attention give, (n, heads * head size)."""
    q, k, v = (_linear(z, layer, f"attn_{name}").view(len(z), -1, plan.head_size).transpose(0, 1) for name in "qkv")
    q, k = _rotated(q, plan, positions), _rotated(k, plan, positions)
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1).flatten(1)


def _rotated(x: Tensor, plan: Plan, positions: Tensor) -> Tensor:
    """Turns neighbouring dimensions of (heads, n, head size) by their position."""
    frequencies = plan.theta ** (-torch.arange(0, plan.head_size, 2, dtype=torch.float64) / plan.head_size)
    angles = positions[:, None] * (frequencies if plan.factors is None else frequencies / plan.factors)
    cos, sin = angles.cos().float(), angles.sin().float()
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _norm(x: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + plan.epsilon).rsqrt() * _float(weight)


def _linear(x: Tensor, layer: Layer, name: str) -> Tensor:
    bias = layer.tensors.get(f"{name}.bias")
    return linear(x, _float(layer.tensors[f"{name}.weight"]), None if bias is None else _float(bias))


def _float(value: Tensor) -> Tensor:
    return value.float().cpu()
