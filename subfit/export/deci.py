"""A compressed model as layers of llama.cpp's architecture `deci`, which holds a different structure in each layer.

A layer of `deci` is x -> z = x + f(norm(x)) -> z + g(norm(z)), where f is an Attention, a full matrix or absent
(`n_head = 0`), and g is a gated FeedForward of any size with SiLU. A chain of these holds any order of branches of the Llama
family, and bypasses between them. Where both branches of a layer have become a FeedForward, it takes one layer more.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from subfit.errors import SubFitError

MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
MULTIPLE = 32  # of hidden units that are added: rows of such a length can be quantised


def unsupported(reason: str) -> SubFitError:
    """Returns the error that llama.cpp cannot hold a model."""
    return SubFitError(f"not for llama.cpp: {reason}")


@dataclass
class Block:
    """One residual branch, x -> x + branch(norm(x)).

    Attributes:
        kind: `attention`; `matrix`, which stands where an Attention does; `ffn`; or `constant`, which has a bias alone.
        tensors: by their names in a layer, such as `ffn_up.weight`; matrices are (out, in).
        heads, kv_heads: of an Attention.
    """

    kind: str
    tensors: dict[str, Tensor]
    heads: int = 0
    kv_heads: int = 0


@dataclass
class Layer:
    """One layer of the file: `kv_heads` is 0 for a matrix, `heads` is 0 too where there is neither."""

    heads: int = 0
    kv_heads: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """The hidden units of the FeedForward."""
        return len(self.tensors["ffn_up.weight"])


@dataclass
class Plan:
    """What a file holds besides the tokenizer.

    Attributes:
        layers: in order.
        embedding: (tokens, d).
        output: (tokens, d), or None where it is the embedding.
        norm: (d), weight of the last norm.
        heads, head_size: of every Attention.
        epsilon: of every norm.
        context: the most tokens for which the file computes what the model does.
        theta: base of the rotary frequencies.
        factors: (head_size / 2), what each of these is divided by; None for ones.
    """

    layers: list[Layer]
    embedding: Tensor
    output: Tensor | None
    norm: Tensor
    heads: int
    head_size: int
    epsilon: float
    context: int
    theta: float
    factors: Tensor | None

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Yields the names and the values of all tensors."""
        yield "token_embd.weight", self.embedding
        yield "output_norm.weight", self.norm
        if self.output is not None:
            yield "output.weight", self.output
        if self.factors is not None:
            yield "rope_freqs.weight", self.factors
        for i, layer in enumerate(self.layers):
            for name, value in layer.tensors.items():
                yield f"blk.{i}.{name}", value


def chain(blocks: Iterable[Block], width: int, heads: int, head_size: int) -> list[Layer]:
    """Returns the layers that compute some branches one after the other.

    Args:
        blocks: in the order of the stream.
        width: d.
        heads, head_size: of every Attention.

    Raises:
        SubFitError: if there are more layers than llama.cpp reads.
    """
    layers: list[Layer] = []
    full = True  # whether the last layer has its FeedForward
    for block in blocks:
        if block.kind == "constant":
            if layers and _absorb(layers[-1], full, block.tensors["bias"]):
                continue
            block = Block("ffn", _constant(width, block.tensors["bias"]))
        if block.kind != "ffn" or full:
            if not full:
                layers[-1].tensors |= _constant(width)
            layers.append(Layer(heads if block.kind != "ffn" else 0, block.kv_heads))
        layers[-1].tensors |= block.tensors
        full = block.kind == "ffn"
    if layers and not full:
        layers[-1].tensors |= _constant(width)
    return _with_heads(layers, width, heads, head_size)


def _absorb(layer: Layer, full: bool, bias: Tensor) -> bool:
    """Adds a constant to the bias of a layer's last branch, if this can have one."""
    if not full and layer.kv_heads == 0:
        return False  # a matrix has no bias in `deci`
    name = "ffn_down.bias" if full else "attn_output.bias"
    layer.tensors[name] = layer.tensors[name] + bias if name in layer.tensors else bias
    return True


def _constant(width: int, bias: Tensor | None = None) -> dict[str, Tensor]:
    """A FeedForward that adds a constant, or nothing: a layer without one would lose the residual stream."""
    nothing = torch.zeros(MULTIPLE, width)
    tensors = {"ffn_norm.weight": torch.ones(width), "ffn_gate.weight": nothing, "ffn_up.weight": nothing}
    return tensors | {"ffn_down.weight": nothing.T} | ({} if bias is None else {"ffn_down.bias": bias})


def _with_heads(layers: list[Layer], width: int, heads: int, head_size: int) -> list[Layer]:
    """Adds what llama.cpp needs: heads in layer 0, which it takes their size from, and at least one layer with a cache."""
    if not any(layer.kv_heads for layer in layers):
        none = torch.zeros(head_size, width)
        names = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
        added = {"attn_norm.weight": torch.ones(width), **dict.fromkeys(names, none), "attn_output.weight": none.T}
        one = Layer(1, 1, added)
        if layers and layers[0].heads == 0:
            one.tensors |= layers.pop(0).tensors
        else:
            one.tensors |= _constant(width)
        layers = [one, *layers]
    elif layers[0].heads == 0:
        layers[0].heads = heads
        layers[0].tensors |= {"attn_norm.weight": torch.ones(width), "attn_output.weight": torch.zeros(width, width)}
    if len(layers) > MOST_LAYERS:
        raise unsupported(f"it reads {MOST_LAYERS} layers at most, and this model takes {len(layers)}")
    return layers
