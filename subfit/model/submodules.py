"""Where the branches of a decoder are: found by what its modules do, not by a list of model names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from subfit.errors import SubFitError

Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")


@dataclass(frozen=True)
class Site:
    """One residual branch of one decoder layer, h -> h + output_norm(branch(input_norm(h))).

    Attributes:
        kind: "attention" or "ffn".
        layer: index of the decoder layer.
        path: module path of the branch's core in the model.
        input_norm, output_norm: module paths of the norms before and after the core; None where there is none.
        shares_norm: whether the input norm also feeds the layer's other branch.
        slot: index of the layer in the key-value cache.
        returns: length of the tuple that the core returns; 0 for a bare tensor.
        width: d, the size of the residual stream.
        parameters: parameters of the core and of the output norm, which replacing takes out.
    """

    kind: Kind
    layer: int
    path: str
    input_norm: str | None
    output_norm: str | None
    shares_norm: bool
    slot: int
    returns: int
    width: int
    parameters: int

    @property
    def name(self) -> str:
        """The site's name in scores, selections and files, such as `attention.3`."""
        return f"{self.kind}.{self.layer}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


@dataclass
class Call:
    """One call of a child module of a decoder layer: its path, the tensor it read and the one it gave."""

    path: str
    read: torch.Tensor
    gave: torch.Tensor
    returns: int
    arguments: int


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns the path and the list of the decoder layers: the list of modules that holds most parameters.

    Raises:
        SubFitError: if the model has no list of layers.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise SubFitError(f"{type(model).__name__} has no list of decoder layers; a decoder-only model is needed")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def first_tensor(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The tensor that a module reads: its first positional argument, or its first keyword argument."""
    value = args[0] if args else next(iter(kwargs.values()), None)
    return value if isinstance(value, torch.Tensor) else None


def _record_calls(path: str, layer: nn.Module, calls: list[Call]) -> list[Any]:
    """Hooks every child of a decoder layer, and the layer itself (path ""), to append its calls to `calls`."""

    def hook(name: str):
        def record(module, args, kwargs, output):
            returns = len(output) if isinstance(output, tuple) else 0
            read, gave = first_tensor(args, kwargs), output[0] if returns else output
            if read is not None and isinstance(gave, torch.Tensor) and gave is not read:
                calls.append(Call(name, read, gave, returns, len(args) + len(kwargs)))

        return record

    named = [("", layer), *((f"{path}.{name}", child) for name, child in layer.named_children())]
    return [child.register_forward_hook(hook(name), with_kwargs=True) for name, child in named]


def probe(model: Any) -> None:
    """Runs a model on two tokens, for who watches its modules."""
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.tensor([[rows // 3, rows // 2]], device=next(model.parameters()).device)  # no special tokens
    model(tokens, use_cache=False)


@torch.no_grad()
def find_sites(model: Any) -> list[Site]:
    """Finds the Attention and the FeedForward of every decoder layer, in the order in which the stream meets them.

    A forward pass over two tokens shows which module reads what another one gave. The children of a layer that hold
    matrices are its branches; the one that is called with more than the stream (mask, positions, cache) is the Attention.
    A child without matrices is a norm: the input norm gives what a branch reads, the output norm reads what it gave.
    That the layer adds exactly these branches to the stream is checked with the tensors of that pass.

    Args:
        model: a causal language model of transformers.

    Raises:
        SubFitError: if a layer is not a sum of the stream, one Attention and one FeedForward.
    """
    root, layers = decoder_layers(model)
    recorded: list[list[Call]] = [[] for _ in layers]
    hooks = [
        handle for index, layer in enumerate(layers) for handle in _record_calls(f"{root}.{index}", layer, recorded[index])
    ]
    try:
        probe(model)
    finally:
        for handle in hooks:
            handle.remove()
    return [site for index, calls in enumerate(recorded) for site in _sites_of_layer(model, index, calls)]


def _sites_of_layer(model: nn.Module, index: int, calls: list[Call]) -> Iterator[Site]:
    whole = calls.pop()  # the layer itself returns last
    branches = [call for call in calls if any(p.ndim > 1 for p in model.get_submodule(call.path).parameters())]
    norms = [call for call in calls if call not in branches]
    attention = [call for call in branches if call.arguments > 1]
    ffn = [call for call in branches if call.arguments == 1]
    where = f"layer {index} of {type(model).__name__}"
    if len(attention) != 1 or len(ffn) != 1:
        found = ", ".join(call.path for call in calls)
        raise SubFitError(f"{where} is not one Attention and one FeedForward; its modules are {found}")
    added = torch.zeros_like(whole.read)
    for kind, call in zip(KINDS, (attention[0], ffn[0]), strict=True):
        before = next((norm for norm in norms if norm.gave is call.read), None)
        after = next((norm for norm in norms if norm.read is call.gave), None)
        added = added + (after or call).gave
        other = ffn[0] if kind == "attention" else attention[0]
        core = model.get_submodule(call.path)
        removed = [core] if after is None else [core, model.get_submodule(after.path)]
        yield Site(
            kind=kind,
            layer=index,
            path=call.path,
            input_norm=before.path if before else None,
            output_norm=after.path if after else None,
            shares_norm=other.read is call.read,
            slot=getattr(core, "layer_idx", index),
            returns=call.returns,
            width=call.read.shape[-1],
            parameters=sum(p.numel() for module in removed for p in module.parameters()),
        )
    if not whole.gave.isfinite().all():
        raise SubFitError(f"{where} gives NaN or infinite values")
    error = (whole.read + added - whole.gave).float().norm() / whole.gave.float().norm()
    if not error < 0.02:  # rounding in bfloat16 stays well below
        raise SubFitError(f"{where} does not add its branches to the residual stream as they are (error {error:.2g})")


class Seen:
    """What passed one site in one forward pass: h, the stream before it; x, what its core read; y, what it added."""

    h: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor


class _Enough(Exception):
    """Ends the forward pass of a layer once everything that was asked for has been seen."""


@contextmanager
def watch(model: nn.Module, site: Site, until: Literal["x", "y", "end"] = "end") -> Iterator[Seen]:
    """Within the context, each forward pass through `site` fills the yielded `Seen` anew.

    Args:
        until: "x" or "y" leaves the `with` block as soon as that tensor is known, before the rest of the layer is run.
    """
    seen = Seen()

    def before(module, args, kwargs):
        seen.h = first_tensor(args, kwargs)

    def core(module, args, kwargs):
        seen.x = first_tensor(args, kwargs)
        if site.input_norm is None:
            seen.h = seen.x
        if until == "x":
            raise _Enough

    def after(module, args, output):
        seen.y = output[0] if isinstance(output, tuple) else output
        if until == "y":
            raise _Enough

    handles = [
        model.get_submodule(site.path).register_forward_pre_hook(core, with_kwargs=True),
        model.get_submodule(site.output_norm or site.path).register_forward_hook(after),
    ]
    if site.input_norm is not None:
        norm = model.get_submodule(site.input_norm)
        handles.append(norm.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield seen
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
