"""How many neurons every FeedForward keeps, and which, by the Fisher information of each."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration, check_subset
from subfit.calibration.gradients import gradients_at_sites
from subfit.calibration.moments import Moments
from subfit.errors import SubFitError
from subfit.fitting.budget import ROUNDING, Budget
from subfit.fitting.layers import before_output_norm, linear_layer, output_norm_of
from subfit.fitting.regression import centre, check_ridge
from subfit.model.activations import Activations, Branch
from subfit.model.processes import full_tensor
from subfit.model.submodules import Site
from subfit.progress import Stage
from subfit.scorer import Scores
from subfit.selector import Selector
from subfit.strategies.bypasses.kept_neurons import hidden_layers

FLOOR = 1e-3  # of the mean variance of the hidden units; it keeps the rows of those that hardly vary as they are


class Fisher(Selector):
    """Takes single neurons out of FeedForwards, wherever they matter least, and leaves every Attention as it is.

    A neuron adds z w to the stream, z its hidden unit and w its row of the output projection. Without its variation, the
    divergence from the dense model is, to second order, half of

        importance = E[((z - E z) g)^2],

    g the gradient, with respect to z, of the loss of tokens that follow what the model predicts: Fisher pruning (Theis et
    al., arXiv 1801.05787). Random signs stand for the tokens; see `random_gradient`.

    The neurons of all FeedForwards are ranked together, and so many go, the least important first, that the budget is met;
    the others are fitted to make up for them. An output norm (RMSNorm) stays behind those that stay. The run's own bypasses,
    and the scores, are not used.

    Args:
        windows: number of calibration windows to measure on.
        length: tokens of each, from its beginning.
        ridge: what holds the rows of the output projection near to what they are, relative to the variance of each unit.
        least: a FeedForward that would lose less than this share of its neurons stays whole.
        seed: of the random gradients; that of the run if not given.

    Raises:
        SubFitError: if the budget is not in parameters, or cannot be met.
    """

    def __init__(
        self,
        windows: int = 64,
        length: int = 256,
        ridge: float = 0.5,
        least: float = 0.05,
        seed: int | None = None,
    ) -> None:
        check_subset(windows, length)
        check_ridge(ridge)
        if not 0 <= least < 1:
            raise SubFitError(f"fisher: least is {least}; it must be at least 0 and less than 1")
        self.windows = windows
        self.length = length
        self.ridge = ridge
        self.least = least
        self.seed = seed

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> dict[Site, Bypass]:
        if budget.unit != "parameters":
            raise SubFitError(f"fisher: it takes out neurons, which are no {budget.unit}; give the budget parameters")
        branches = {site: calibration.branch(site) for site in scores if site.kind == "ffn" and site.hidden}
        norms = {site: output_norm_of(branch) for site, branch in branches.items()}
        sites = [site for site, norm in norms.items() if site.output_norm is None or norm is not None]
        if not sites:
            raise SubFitError("fisher: no FeedForward that may be replaced has neurons, and no output norm but RMSNorm")
        for site in sites:
            hidden_layers(branches[site])  # or it cannot be fitted
        tokens = calibration.subset(self.windows, self.length).to(calibration.device)
        importance = measure(calibration, sites, tokens, self.seed or 0)
        numbers = numbers_to_keep(importance, budget.goal(), self.least)
        kept = {site: importance[site].topk(number).indices.sort().values for site, number in numbers.items()}
        return {site: FittedNeurons(units, self.ridge, norms[site]) for site, units in kept.items()}


class FittedNeurons(Bypass):
    """z_S V + b, of some hidden units, S, and with V the ridge regression towards their own rows, W_S.

    With an output norm, norm(z_S V + b): regressed on is what goes into it, of the same scale as what the branch has there,
    and other by what the target differs from what the branch gives.

    Args:
        kept: (k), the indices of the units, in order.
        ridge: penalty on each row of V - W_S, relative to the variance of its unit.
        norm: the output norm, if there is one.
    """

    def __init__(self, kept: Tensor, ridge: float, norm: nn.RMSNorm | None = None) -> None:
        self.kept = kept
        self.ridge = ridge
        self.norm = norm

    def parameters(self, sites: list[Site]) -> int:
        return sum(len(self.kept) * (site.parameters // site.hidden) + fixed_parameters(site) for site in sites)

    def features(self, seen: Activations) -> Tensor:
        return seen.hidden[..., self.kept]

    def targets(self, seen: Activations, y: Tensor) -> Tensor:
        return y if self.norm is None else before_output_norm(self.norm, seen.before_norm, y)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c, layers = centre(moments), hidden_layers(branch)
        own, variances = full_tensor(layers.output).double()[self.kept], c.xx.diagonal()
        penalty = self.ridge * (variances + FLOOR * variances.mean())
        v = own + torch.linalg.solve(c.xx + penalty.diag(), c.xy - c.xx @ own)
        norm = [] if self.norm is None else [copy.deepcopy(self.norm)]
        return nn.Sequential(*layers.of(self.kept), linear_layer(v, c.mean_y - c.mean_x @ v), *norm)


def fixed_parameters(site: Site) -> int:
    """The parameters beside the neurons: the bias, and the weight of the output norm, if there is one."""
    return site.width * (1 if site.output_norm is None else 2)


@torch.no_grad()
def measure(calibration: Calibration, sites: list[Site], tokens: Tensor, seed: int) -> dict[Site, Tensor]:
    """Returns the importance of each hidden unit of each site, (f) in nats per token; see `Fisher`.

    Args:
        tokens: (windows, length). The loss is summed over a window: g is of all that a token has a part in.

    Raises:
        SubFitError: if there are NaN or infinite values.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed)

    def loss(logits: Tensor, window: Tensor) -> Tensor:
        return (logits * random_gradient(logits.detach(), generator)).sum()

    sums = {site: torch.zeros(4, site.hidden, dtype=torch.float64, device=tokens.device) for site in sites}
    with Stage("importance of neurons", len(tokens), "windows") as progress:
        for passed in gradients_at_sites(calibration.model, sites, tokens, loss, "hidden"):
            for site, (seen, gradient) in zip(sites, passed, strict=True):
                z, g = (part.detach().flatten(0, -2).float() for part in (seen.hidden, gradient))
                a = g * g
                sums[site] += torch.stack([part.sum(0) for part in (z, a, z * a, z * z * a)])
            progress.advance()
    importance = {}
    for site, total in sums.items():
        z, a, za, zza = total / tokens.numel()
        importance[site] = (zza - 2 * z * za + z * z * a).clamp_min(0)
        if not importance[site].isfinite().all():
            raise SubFitError(f"fisher: {site.name} has NaN or infinite gradients or hidden units")
    return importance


def random_gradient(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a random gradient with respect to logits (tokens, vocabulary), of mean zero and covariance diag(p) - p p^T.

    p = softmax(logits). That is the second derivative of the divergence from p, and the covariance of the gradient of the
    loss of tokens drawn from p. Where the model is sure, such a draw is almost always the same token, of no gradient,
    and rarely another one, of a large gradient. Random signs for the whole vocabulary give one of a like size each time. The
    importance of neurons varies a little less with them.
    """
    p = logits.softmax(-1)
    signs = torch.randint(0, 2, p.shape, dtype=p.dtype, device=p.device, generator=generator).mul_(2).sub_(1)
    roots = p.sqrt().mul_(signs)
    return roots.addcmul_(p, roots.sum(-1, keepdim=True), value=-1)


def numbers_to_keep(importance: Mapping[Site, Tensor], goal: float, least: float) -> dict[Site, int]:
    """Returns how many neurons stay where some go, so that the parameters saved, net of the new biases, reach a goal.

    The least important per parameter go. Of a site one stays at least; one that would lose less than a share `least` of
    its neurons is left whole, and others lose more.

    Raises:
        SubFitError: if all neurons but one of each site do not save enough.
    """
    sites = list(importance)
    while sites:
        size = torch.tensor([site.parameters // site.hidden for site in sites], dtype=torch.float64)
        owner = torch.repeat_interleave(torch.tensor([site.hidden - 1 for site in sites]))
        values = torch.cat([importance[site].cpu().double().sort().values[:-1] for site in sites])
        order = (values / size[owner]).argsort(stable=True)
        saved = size[owner[order]].cumsum(0)
        wanted = (goal + sum(map(fixed_parameters, sites))) * (1 - ROUNDING)
        count = int((saved < wanted).sum()) + 1
        if count > len(saved):
            break
        gone = dict(zip(sites, torch.bincount(owner[order[:count]], minlength=len(sites)).tolist(), strict=True))
        few = [site for site, number in gone.items() if number == 0 or number < least * site.hidden]
        if not few:
            return {site: site.hidden - number for site, number in gone.items()}
        sites = [site for site in sites if site not in few]
    raise SubFitError(f"fisher: the neurons that may go do not save {goal:.4g} parameters; give a lower sparsity")
