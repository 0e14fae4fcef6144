"""The submodules of a decoder, and where its layers are."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from subfit.errors import SubFitError

Kind = Literal["attention", "mixer", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "mixer", "ffn")
TITLES: dict[str, str] = {"attention": "Attention", "mixer": "Mixer", "ffn": "FeedForward"}


@dataclass(frozen=True)
class Site:
    """One submodule: a residual branch of one decoder layer, h -> h + coefficient * output_norm(core(input_norm(h))).

    Attributes:
        kind: "attention", which caches keys and values; "mixer", which mixes tokens in another way, such as a state-space
            model or a convolution; or "ffn".
        layer: index of the decoder layer.
        path: module path of the branch's core in the model.
        input_norm, output_norm: module paths of the norms before and after the core; None where there is none.
        shares_norm: whether the input norm also feeds another branch of the layer.
        slot: index of the layer in the cache.
        returns: length of the tuple that the core returns; 0 for a bare tensor.
        width: d, the size of the residual stream.
        parameters: parameters of the core and of the output norm, which replacing takes out.
        output_projection: module path of the linear layer whose output is what the core gives; None where there is none, as
            in a mixture of experts.
        hidden: number of features that the output projection reads: the hidden units of a FeedForward, or the sizes of the
            heads of an Attention together; 0 where there is no output projection.
        coefficient: what the layer multiplies the branch's output by, relative to the stream, when it adds it.
        stage: branches of a layer with one stage read the same stream, in parallel; those of the next stage what is after.
        layer_sites: number of sites in the layer.
        label: tells apart several sites of one kind in one layer; empty for the first.
        overwritten: whether the layer changes in place what the core gives.
        groups: number of key-value groups of an Attention, heads of keys with the query heads that read them; 0 where there
            are none, or no output projection.
        group_parameters: parameters of each group: its rows of the projections of the input, and its columns of the output
            projection.
        common_parameters: parameters of the core that no group has a part of, such as norms of heads; the bias of the output
            projection does not count.
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
    coefficient: float = 1.0
    stage: int = 0
    layer_sites: int = 2
    label: str = ""
    overwritten: bool = False
    groups: int = 0
    group_parameters: int = 0
    common_parameters: int = 0

    @property
    def name(self) -> str:
        """The site's name in scores, selections and files, such as `attention.3`."""
        return f"{self.kind}.{self.layer}" + (f".{self.label}" if self.label else "")

    @property
    def output_name(self) -> str:
        """The path of the output projection within the core; empty where there is none."""
        return (self.output_projection or "").removeprefix(f"{self.path}.")

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns the path and the list of the decoder layers: the list of modules that holds most parameters.

    Of a model that reads images or sounds too, only what reads text is looked at.

    Raises:
        SubFitError: if the model has no list of layers.
    """
    decoder: Any = getattr(model, "get_decoder", lambda: model)
    text = set(decoder().modules())
    others = _configs_of_others(model)
    for part in text.copy():
        if isinstance(part, PreTrainedModel) and type(part.config) in others:
            text.difference_update(part.modules())
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [(name, module) for name, module in named if module in text]
    if not any(len(module) for _, module in lists):
        raise SubFitError(f"{type(model).__name__} has no list of decoder layers; a decoder-only model is needed")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _configs_of_others(model: Any) -> set[type]:
    """The types of the configurations that a model has beside that of what reads text."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return set()
    parts = {type(getattr(config, name, None)) for name in config.sub_configs}
    return parts - {type(config), type(config.get_text_config(decoder=True))}


def slot_of(core: nn.Module, layer: int) -> int:
    """Returns the index in the cache that a core of this decoder layer says it has; else the layer's."""
    index = getattr(core, "layer_idx", None)  # some have None there
    return index if isinstance(index, int) else layer


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the tensor that a module reads: its first positional argument, or its first keyword argument."""
    value = args[0] if args else next(iter(kwargs.values()), None)
    return value if isinstance(value, Tensor) else None


def main_output(output: Any) -> Any:
    """Returns the tensor that a module gives: its output, or the first of several."""
    return output[0] if isinstance(output, tuple) else output
