"""A FeedForward's own most needed neurons and a low-rank map, in its place."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.errors import SubFitError
from subfit.fitting.kept_units import Prior, fit_beside, unexplained_energy
from subfit.fitting.layers import ROUNDING, linear_layer
from subfit.fitting.regression import centre, check_ridge
from subfit.model.activations import Activations, Branch
from subfit.model.modeling_subfit import Product, Sum
from subfit.model.processes import full_tensor
from subfit.model.submodules import Site

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.SiLU, nn.GELU, lambda: nn.GELU(approximate="tanh"), nn.ReLU)
Layer = tuple[Tensor, Tensor | None]  # weight (units, d), bias (units)


class KeptNeurons(Bypass):
    """x A B + z_S V + b: a low-rank map of the input x, and some of the FeedForward's own hidden units z, S.

    Structured pruning with least-squares compensation (as MoDeGPT, arXiv 2408.09632, and SlimLLM, ICML 2025), as a bypass.
    Kept are the units with the most energy, |W_out,j|^2 times the variance of z_j that x does not explain: a linear map of x
    has the rest already. Their rows of the gate and up projections stay as they are; A B and V are fitted together, by
    reduced-rank regression on x of what z_S leaves, and least squares on both: the optimum for this rank and these units.

    Args:
        share: added parameters as a share of the removed ones.
        neurons: the part of them that goes into neurons; the rest goes into the low-rank map.
        ridge: penalty on A B and on V minus its prior, relative to the mean variance of x and of z_S.
        prior: what V is drawn to: `zero`, or `weights`, the units' own rows of W_out, which carry over to other text.

    Raises:
        SubFitError: if a share is out of its range.
    """

    def __init__(self, share: float = 0.1, neurons: float = 0.5, ridge: float = 1e-4, prior: Prior = "zero") -> None:
        check_ridge(ridge)
        if not share > 0 or not 0 <= neurons <= 1:
            raise SubFitError(f"kept_neurons: share is {share} and neurons {neurons}; give above 0, and from 0 to 1")
        self.share = share
        self.neurons = neurons
        self.ridge = ridge
        self.prior = prior

    def parameters(self, sites: list[Site]) -> int:
        return sum(self._sizes(site).parameters for site in sites)

    def features(self, seen: Activations) -> Tensor:
        return torch.cat([seen.x, seen.hidden], -1)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c, size = centre(moments), self._sizes(branch.site)
        hidden = hidden_layers(branch)
        output = full_tensor(hidden.output).double()
        kept = unexplained_energy(c, output, self.ridge).topk(size.neurons).indices.sort().values
        found = fit_beside(c, output, kept, size.rank, self.ridge, self.prior)
        if not size.rank:
            return nn.Sequential(*hidden.of(kept), linear_layer(found.v, found.bias))
        low_rank = nn.Sequential(linear_layer(found.a), linear_layer(found.b, found.bias))
        return Sum(low_rank, nn.Sequential(*hidden.of(kept), linear_layer(found.v))) if size.neurons else low_rank

    def _sizes(self, site: Site) -> "Sizes":
        if site.kind != "ffn" or not site.hidden:
            raise SubFitError(
                f"kept_neurons: {site.name} has no hidden units; use it for FeedForwards that are not mixtures"
            )
        allowance = self.share * site.parameters - site.width  # of it, one bias
        neurons = min(int(self.neurons * allowance // _per_neuron(site)), site.hidden)
        rank = min(int((allowance - neurons * _per_neuron(site)) // (2 * site.width)), site.width) if self.neurons < 1 else 0
        if neurons + rank < 1:
            raise SubFitError(f"kept_neurons: {self.share} of {site.name} is less than one neuron; give a larger share")
        return Sizes(neurons, rank, neurons * _per_neuron(site) + rank * 2 * site.width + site.width)


@dataclass(frozen=True)
class Sizes:
    """How many neurons a bypass keeps, the rank of its map, and the parameters of both with the bias."""

    neurons: int
    rank: int
    parameters: int


def _per_neuron(site: Site) -> int:
    """The parameters of one hidden unit: its rows of the gate and up projections with their biases, and its output."""
    return site.parameters // site.hidden


@dataclass(frozen=True)
class HiddenLayers:
    """How a FeedForward makes its hidden units: activation(up(x)), or activation(gate(x)) * up(x).

    Attributes:
        gate, up: weight (units, d) and bias (units), or None; `gate` is None where there is none.
        activation: of the gate, or of `up` where there is none.
        output: (units, d), the weight of the output projection.
    """

    gate: Layer | None
    up: Layer
    activation: nn.Module
    output: Tensor

    def of(self, units: Tensor) -> Iterator[nn.Module]:
        """Yields the modules that make some of the hidden units, (n), one after the other."""
        up = _rows(self.up, units)
        if self.gate is None:
            yield from (up, self.activation)
        else:
            yield Product(nn.Sequential(_rows(self.gate, units), self.activation), up)


def _rows(layer: Layer, units: Tensor) -> nn.Linear:
    weight, bias = layer
    return linear_layer(weight[units].T, None if bias is None else bias[units])


@torch.no_grad()
def hidden_layers(branch: Branch) -> HiddenLayers:
    """Finds how a FeedForward makes its hidden units, by running it: by what its layers do, not by their names.

    Raises:
        SubFitError: if it does so in another way.
    """
    output = branch.output_projection
    x, layers, z = _run(branch)
    found: list[tuple[float, int, HiddenLayers]] = []
    for gate, up in _roles([part for layer in layers for part in _split(layer, z.shape[-1])]):
        for make in ACTIVATIONS:
            candidate = HiddenLayers(gate, up, make(), _weight(output).T)
            gave = nn.Sequential(*candidate.of(torch.arange(z.shape[-1], device=z.device))).double()(x)
            found.append((float((gave - z).norm() / z.norm()), len(found), candidate))
    if not found or not min(found)[0] < ROUNDING:
        name = type(branch.core).__name__
        raise SubFitError(f"kept_neurons: {branch.site.name} ({name}) is neither act(x U) nor act(x G) * x U")
    return min(found)[2]


def _roles(layers: list[Layer]) -> list[tuple[Layer | None, Layer]]:
    """Which of the layers may be the gate, if any, and the up projection."""
    if len(layers) == 1:
        return [(None, layers[0])]
    return [(layers[0], layers[1]), (layers[1], layers[0])] if len(layers) == 2 else []


def _run(branch: Branch, tokens: int = 64) -> tuple[Tensor, list[Any], Tensor]:
    """Runs the core on random tokens: these (tokens, d), the layers that read them, and the hidden units (tokens, f)."""
    weight = next(branch.core.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, branch.site.width, generator=generator).to(weight.device, weight.dtype)
    layers: list[Any] = []
    hidden: list[Tensor] = []

    def see(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0] is x:
            layers.append(layer)

    with ExitStack() as stack:
        for module in branch.core.modules():
            if isinstance(module, nn.Linear | Conv1D):
                stack.callback(module.register_forward_pre_hook(see).remove)
        last = branch.output_projection.register_forward_pre_hook(lambda its, args: hidden.append(args[0]))
        stack.callback(last.remove)
        branch.run(x)
    return x[0].double(), layers, hidden[0].flatten(0, -2).double()


def _split(layer: Any, units: int) -> Iterator[Layer]:
    """The weight (units, d) and the bias of a layer; of one that holds gate and up together, of each half."""
    weight, bias = _weight(layer), None if layer.bias is None else full_tensor(layer.bias)
    for start in range(0, len(weight) // units * units, units):
        part = slice(start, start + units)
        yield weight[part], None if bias is None else bias[part]


def _weight(layer: Any) -> Tensor:
    """The weight of a linear layer as (out, in)."""
    weight = full_tensor(layer.weight)
    return weight if isinstance(layer, nn.Linear) else weight.T
