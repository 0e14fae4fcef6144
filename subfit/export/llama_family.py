"""Reads a model of the Llama family, dense or compressed, as a plan of llama.cpp's architecture `deci`."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.export.deci import Block, Plan, chain, unsupported
from subfit.export.deci_bypass import blocks_of
from subfit.model.modeling_subfit import AttentionBypass, FeedForwardBypass

FAMILIES = ("llama", "mistral", "qwen2", "phi3")
STILL = 1e30  # divisor of the frequencies of dimensions that are not rotated
WHY_NOT = {
    "gemma": "GELU, and norms with an offset",
    "gemma2": "GELU, and norms after its branches",
    "gemma3_text": "GELU, and norms after its branches",
    "gpt2": "layer norms and learnt positions",
    "gpt_neox": "layer norms, and both branches in parallel",
    "granite": "factors on its branches and logits",
    "mixtral": "mixtures of experts",
    "olmo2": "norms after its branches, and on queries and keys",
    "phi": "layer norms, and both branches in parallel",
    "qwen3": "norms on queries and keys",
    "stablelm": "layer norms",
}


def check_family(config: Any) -> None:
    """Raises SubFitError if `deci` cannot hold models of this configuration, dense or compressed."""
    family = config.model_type
    if family not in FAMILIES:
        why = f"has {WHY_NOT[family]}" if family in WHY_NOT else "is not known to be of that kind"
        raise unsupported(f"its architecture deci holds {', '.join(FAMILIES)} alone; the family {family} {why}")
    if config.hidden_act != "silu":
        raise unsupported(f"the activation is {config.hidden_act}; its architecture deci has silu alone")


@torch.no_grad()
def plan_of(model: Any) -> Plan:
    """Returns what a file for llama.cpp holds of a model; its weights in their own data type, those of bypasses in float32.

    Raises:
        SubFitError: if `deci` cannot compute the model; the message names the submodule or the family, and the reason.
    """
    config = model.config
    check_family(config)
    decoder = model.model
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    theta = config.rope_parameters["rope_theta"]
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    return Plan(
        layers=chain(_blocks(model, head_size), config.hidden_size, heads, head_size),
        embedding=embedding.detach(),
        output=None if head is embedding or torch.equal(head, embedding) else head.detach(),
        norm=decoder.norm.weight.detach(),
        heads=heads,
        head_size=head_size,
        epsilon=config.rms_norm_eps,
        context=_context(config),
        theta=theta,
        factors=_factors(decoder.rotary_emb.inv_freq, theta, head_size),
    )


def _blocks(model: Any, head_size: int) -> Iterator[Block]:
    """The branches of all layers, in the order of the stream."""
    replaced = {site["path"] for site in getattr(model.config, "subfit", {"sites": []})["sites"]}
    rotary = model.model.rotary_emb
    for i, layer in enumerate(model.model.layers):
        for kind, path, norm in (
            ("attention", "self_attn", layer.input_layernorm),
            ("ffn", "mlp", layer.post_attention_layernorm),
        ):
            module = layer.get_submodule(path)
            weight: Any = None if isinstance(norm, nn.Identity) else norm.weight.detach().float()
            if f"model.layers.{i}.{path}" in replaced:
                bypass = module.bypass if isinstance(module, AttentionBypass | FeedForwardBypass) else module
                try:
                    yield from blocks_of(bypass, weight, model.config.hidden_size)
                except SubFitError as error:
                    raise unsupported(f"{kind}.{i}: {error}") from error
            elif kind == "attention":
                yield _attention(module, weight, model.config, head_size, rotary)
            else:
                yield _feed_forward(module, weight)


def _attention(module: Any, norm: Tensor, config: Any, head_size: int, rotary: Any) -> Block:
    heads, kv_heads, turned = config.num_attention_heads, config.num_key_value_heads, 2 * len(rotary.inv_freq)
    if abs(module.scaling * head_size**0.5 - 1) > 1e-6:
        raise unsupported(f"attention scores are scaled by {module.scaling}, which deci cannot")
    if hasattr(module, "qkv_proj"):
        sizes = [heads * head_size, kv_heads * head_size, kv_heads * head_size]
        weights, biases = _split(module.qkv_proj, sizes)
    else:
        layers = (module.q_proj, module.k_proj, module.v_proj)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    tensors = {"attn_norm.weight": norm, "attn_output.weight": module.o_proj.weight.detach()}
    if module.o_proj.bias is not None:
        tensors["attn_output.bias"] = module.o_proj.bias.detach().float()
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        for kind, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                value = value.detach() if kind == "weight" else value.detach().float()
                factor = rotary.attention_scaling**2 if name == "q" else 1.0
                tensors[f"attn_{name}.{kind}"] = value if name == "v" else _interleaved(value, head_size, turned, factor)
    return Block("attention", tensors, heads, kv_heads)


def _interleaved(rows: Tensor, head_size: int, turned: int, factor: float) -> Tensor:
    """Rows of queries or keys in llama.cpp's order: it turns neighbours, transformers the halves of the turned dimensions.

    `factor` scales the turned rows: transformers scales the rotary embeddings of both, by the root of it.
    """
    order = torch.arange(head_size)
    order[:turned] = order[:turned].view(2, -1).T.flatten()
    rows = rows.view(-1, head_size, *rows.shape[1:])[:, order]
    if factor != 1:
        rows = torch.cat([rows[:, :turned] * factor, rows[:, turned:]], 1)
    return rows.flatten(0, 1)


def _feed_forward(module: Any, norm: Tensor) -> Block:
    if hasattr(module, "gate_up_proj"):
        (gate, up), (gate_bias, up_bias) = _split(module.gate_up_proj, [module.gate_up_proj.out_features // 2] * 2)
    else:
        gate, up, gate_bias, up_bias = (
            module.gate_proj.weight,
            module.up_proj.weight,
            module.gate_proj.bias,
            module.up_proj.bias,
        )
    tensors = {"ffn_norm.weight": norm}
    parts = {"gate": (gate, gate_bias), "up": (up, up_bias), "down": (module.down_proj.weight, module.down_proj.bias)}
    for name, (weight, bias) in parts.items():
        tensors[f"ffn_{name}.weight"] = weight.detach()
        if bias is not None:
            tensors[f"ffn_{name}.bias"] = bias.detach().float()
    return Block("ffn", tensors)


def _split(layer: Any, sizes: list[int]) -> tuple[list[Tensor], list[Any]]:
    """The weights and the biases of a layer that computes several at once."""
    biases = [None] * len(sizes) if layer.bias is None else list(layer.bias.split(sizes))
    return list(layer.weight.split(sizes)), biases


def _context(config: Any) -> int:
    """The most tokens up to which attention is full and the rotary frequencies are constant."""
    limits: list[int] = [config.max_position_embeddings]
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "sliding_window", None) and (kinds is None or "sliding_attention" in kinds):
        limits.append(config.sliding_window)
    if config.rope_parameters.get("rope_type") == "longrope":  # other frequencies apply to longer texts
        original = config.rope_parameters.get("original_max_position_embeddings")
        limits.append(original or config.original_max_position_embeddings)
    return min(limits)


def _factors(frequencies: Tensor, theta: float, head_size: int) -> Tensor | None:
    """What the plain rotary frequencies are divided by to give those of a model, (head_size / 2); None for ones."""
    plain = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    factors = torch.full_like(plain, STILL)
    factors[: len(frequencies)] = plain[: len(frequencies)] / frequencies.double().cpu()
    return None if (factors - 1).abs().max() < 1e-5 else factors.float()
