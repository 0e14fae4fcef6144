"""A small feed-forward network in the place of the branch, trained by gradient descent."""

from typing import Literal

import torch
from torch import Tensor, nn

from subfit.bypass import Bypass
from subfit.errors import SubFitError
from subfit.fitting.gradient_fit import fit_by_gradient
from subfit.fitting.layers import linear_layer, rank_for
from subfit.fitting.regression import centre, check_ridge, reduced_rank
from subfit.fitting.statistics import Pairs, StreamingPairs
from subfit.model.activations import Branch
from subfit.model.modeling_subfit import SwiGLU
from subfit.model.submodules import Site


class MLP(Bypass):
    """silu(x G + g) * (x U) D + b, or gelu(x U + u) D + b, trained on pairs from the closed-form low-rank fit onwards.

    It starts exactly at that fit, x A B + b (`regression.reduced_rank`): SwiGLU with G = 0, silu(g) = 1, U = A, D = B; GELU
    with U = [A, -A] and D = [B; -B], because gelu(z) - gelu(-z) = z. AdamW with cosine decay then lowers the mean squared
    error, and the best state on a held-out tenth of the tokens, the first included, is what is returned. (The closed-form
    fit has seen that tenth, so training has to be better than it looks.)

    Args:
        activation: `swiglu` or `gelu`.
        hidden: hidden units, an even number for `gelu`; or `auto`: as many as `share` allows.
        share: added parameters as a share of the removed ones, for hidden `auto`.
        steps: optimiser steps; 0 gives the low-rank fit.
        learning_rate: at the first step; inputs and targets are scaled to about 1 for it.
        batch_tokens: tokens in each step.
        ridge: penalty of the low-rank fit, relative to the mean variance of the inputs.
        seed: of the batches, the held-out tokens, and the units that the low-rank fit has no use for; the run's if not
            given.
        reads: `input`, the branch's normed input, or `stream`, the residual stream before the norm.

    Raises:
        SubFitError: if an option is out of its range.
    """

    statistics = StreamingPairs

    def __init__(
        self,
        activation: Literal["swiglu", "gelu"] = "swiglu",
        hidden: int | Literal["auto"] = "auto",
        share: float = 0.1,
        steps: int = 1000,
        learning_rate: float = 1e-3,
        batch_tokens: int = 1024,
        ridge: float = 1e-4,
        seed: int | None = None,
        reads: Literal["input", "stream"] = "input",
    ) -> None:
        check_ridge(ridge)
        if activation not in ("swiglu", "gelu"):
            raise SubFitError(f"unknown activation {activation!r} of an MLP; use swiglu or gelu")
        if hidden != "auto" and (hidden < 1 or (activation == "gelu" and hidden % 2)):
            raise SubFitError(f"hidden is {hidden}; it must be at least 1, and even for gelu")
        if steps < 0 or batch_tokens < 1:
            raise SubFitError(f"steps is {steps} and batch_tokens {batch_tokens}; they must be at least 0 and 1")
        self.activation = activation
        self.hidden = hidden
        self.share = share
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_tokens = batch_tokens
        self.ridge = ridge
        self.seed = seed
        self.reads = reads

    def parameters(self, sites: list[Site]) -> int:
        return sum(self._units(site) * self._per_unit(site) + site.width for site in sites)

    def fit(self, branch: Branch, pairs: Pairs, shared: None) -> nn.Module:
        c = centre(pairs)
        a, b = reduced_rank(c, self._units(branch.site), self.ridge)
        x_scale = power_of_two((pairs.xx.diagonal() / pairs.n).sqrt())
        y_scale = power_of_two((c.yy.clamp_min(0) / branch.site.width).sqrt())
        module, first, last = self._module(a * x_scale[:, None], b / y_scale, (c.mean_y - c.mean_x @ a @ b) / y_scale)
        scales = x_scale.float(), y_scale.float()

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.mse_loss(module(x.float() / scales[0]), y.float() / scales[1])

        tokens = pairs.inputs, pairs.targets
        fit_by_gradient(module, loss, *tokens, self.steps, self.learning_rate, self.batch_tokens, self.seed or 0)
        with torch.no_grad():
            for layer in first:
                layer.weight.div_(scales[0])
            last.weight.mul_(scales[1])
            last.bias.mul_(scales[1])
        return module

    def _module(self, a: Tensor, b: Tensor, bias: Tensor) -> tuple[nn.Module, list[nn.Linear], nn.Linear]:
        """The network that computes x A B + bias, the layers that read its input, and the one that gives its output."""
        generator = torch.Generator().manual_seed(self.seed or 0)
        random = torch.randn(a.shape, generator=generator, dtype=a.dtype).to(a.device) / len(a) ** 0.5
        a = torch.where((a == 0).all(0), random, a)  # units whose output is 0: they learn only if their input is not
        if self.activation == "gelu":
            pairs = torch.cat([a, -a], 1)
            up, down = linear_layer(pairs, torch.zeros_like(pairs[0])), linear_layer(torch.cat([b, -b]), bias)
            return nn.Sequential(up, nn.GELU(), down), [up], down
        module = SwiGLU(len(a), a.shape[1]).to(a.device)
        module.up, module.down = linear_layer(a), linear_layer(b, bias)
        nn.init.zeros_(module.gate.weight)
        nn.init.constant_(module.gate.bias, silu_one())
        return module, [module.gate, module.up], module.down

    def _units(self, site: Site) -> int:
        """Hidden units, or pairs of them for GELU."""
        if self.hidden == "auto":
            return rank_for("auto", self.share * site.parameters, site.width, self._per_unit(site), site.parameters)
        return self.hidden // 2 if self.activation == "gelu" else self.hidden

    def _per_unit(self, site: Site) -> int:
        return 2 * (2 * site.width + 1) if self.activation == "gelu" else 3 * site.width + 1


def power_of_two(scale: Tensor) -> Tensor:
    """The powers of two next to positive numbers, so that scaling rounds nothing; 1 for others."""
    return torch.where(scale > 0, torch.exp2(scale.log2().round()), 1.0)


def silu_one() -> float:
    """The b with silu(b) = b / (1 + exp(-b)) = 1, by Newton's method."""
    b = torch.tensor(1.28, dtype=torch.float64)
    for _ in range(5):
        s = b.sigmoid()
        b = b - (b * s - 1) / (s + b * s * (1 - s))
    return float(b)
