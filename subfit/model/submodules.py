"""Where the branches of a decoder are: found by what its modules do, not by a list of model names."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subfit.errors import SubFitError

Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")
ROUNDING = 0.02  # of a layer's output, in bfloat16, is well below this share of it


@dataclass(frozen=True)
class Site:
    """One submodule: a residual branch of one decoder layer, h -> h + output_norm(core(input_norm(h))).

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
        output_projection: module path of the linear layer whose output is what the core gives; None where there is none, as
            in a mixture of experts.
        hidden: number of features that the output projection reads: the hidden units of a FeedForward, or the sizes of the
            heads of an Attention together; 0 where there is no output projection.
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
    output_projection: str | None = None
    hidden: int = 0

    @property
    def name(self) -> str:
        """The site's name in scores, selections and files, such as `attention.3`."""
        return f"{self.kind}.{self.layer}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


@dataclass
class Call:
    """One call of a module within a decoder layer: its path, the tensor it read and the one it gave."""

    path: str
    read: Tensor
    gave: Tensor
    returns: int
    arguments: int


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns the path and the list of the decoder layers: the list of modules that holds most parameters.

    Raises:
        SubFitError: if the model has no list of layers.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not any(len(module) for _, module in lists):
        raise SubFitError(f"{type(model).__name__} has no list of decoder layers; a decoder-only model is needed")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the tensor that a module reads: its first positional argument, or its first keyword argument."""
    value = args[0] if args else next(iter(kwargs.values()), None)
    return value if isinstance(value, Tensor) else None


def probe(model: Any) -> None:
    """Runs a model on two tokens, so that hooks see the calls of its modules."""
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
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            for path, module in _recorded_modules(f"{root}.{index}", layer):
                hook = module.register_forward_hook(_recorder(path, recorded[index]), with_kwargs=True)
                stack.callback(hook.remove)
        probe(model)
    return [site for index, calls in enumerate(recorded) for site in _sites_of_layer(model, index, f"{root}.{index}", calls)]


def _recorded_modules(path: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layer itself, its children, and the linear layers within these."""
    yield path, layer
    for name, module in layer.named_modules():
        if name and ("." not in name or isinstance(module, nn.Linear | Conv1D)):
            yield f"{path}.{name}", module


def _recorder(path: str, calls: list[Call]) -> Callable[..., None]:
    """A hook that appends each call of a module to `calls`."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        returns = len(output) if isinstance(output, tuple) else 0
        read, gave = first_tensor(args, kwargs), output[0] if returns else output
        if read is not None and isinstance(gave, Tensor) and gave is not read:
            calls.append(Call(path, read, gave, returns, len(args) + len(kwargs)))

    return record


def _sites_of_layer(model: nn.Module, index: int, root: str, calls: list[Call]) -> list[Site]:
    """The sites of a layer, from the calls of its modules in the order in which they ended."""
    name = f"layer {index} of {type(model).__name__}"
    children = [call for call in calls if call.path.rpartition(".")[0] == root]
    layer = next(call for call in calls if call.path == root)
    branches = _branches(model, children, name)
    norms = [call for call in children if not _has_matrices(model, call)]
    sites = [_site(model, index, kind, branches, norms, calls) for kind in KINDS]
    _check_sum(layer, [_after(norms, branch) or branch for branch in branches.values()], name)
    return sites


def _has_matrices(model: nn.Module, call: Call) -> bool:
    return any(p.ndim > 1 for p in model.get_submodule(call.path).parameters())


def _branches(model: nn.Module, children: list[Call], name: str) -> dict[Kind, Call]:
    """The Attention and the FeedForward among the children of a layer."""
    branches = [call for call in children if _has_matrices(model, call)]
    found = {"attention": [c for c in branches if c.arguments > 1], "ffn": [c for c in branches if c.arguments == 1]}
    if any(len(calls) != 1 for calls in found.values()):
        modules = ", ".join(call.path for call in children)
        raise SubFitError(f"{name} is not one Attention and one FeedForward; its modules are {modules}")
    return {kind: found[kind][0] for kind in KINDS}


def _after(norms: list[Call], branch: Call) -> Call | None:
    """The norm that reads what a branch gave."""
    return next((norm for norm in norms if norm.read is branch.gave), None)


def _site(
    model: nn.Module, index: int, kind: Kind, branches: dict[Kind, Call], norms: list[Call], calls: list[Call]
) -> Site:
    """One site, from what its branch read and gave."""
    call = branches[kind]
    core = model.get_submodule(call.path)
    before, after = next((norm for norm in norms if norm.gave is call.read), None), _after(norms, call)
    removed = [core] if after is None else [core, model.get_submodule(after.path)]
    output = next((c for c in calls if c.gave is call.gave and c.path.startswith(f"{call.path}.")), None)
    return Site(
        kind=kind,
        layer=index,
        path=call.path,
        input_norm=before.path if before else None,
        output_norm=after.path if after else None,
        shares_norm=all(other.read is call.read for other in branches.values()),
        slot=getattr(core, "layer_idx", index),
        returns=call.returns,
        width=call.read.shape[-1],
        parameters=sum(p.numel() for module in removed for p in module.parameters()),
        output_projection=output.path if output else None,
        hidden=output.read.shape[-1] if output else 0,
    )


def _check_sum(layer: Call, added: list[Call], name: str) -> None:
    """Raises SubFitError unless a layer gives the stream that it read plus what its branches added."""
    if not layer.gave.isfinite().all():
        raise SubFitError(f"{name} gives NaN or infinite values")
    total = sum((call.gave for call in added), torch.zeros_like(layer.read))
    error = (layer.read + total - layer.gave).float().norm() / layer.gave.float().norm()
    if not error < ROUNDING:
        raise SubFitError(f"{name} does not add its branches to the residual stream as they are (error {error:.2g})")
