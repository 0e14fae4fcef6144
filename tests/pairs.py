"""Inputs and targets to fit, what a bypass is given of them, and their least squares by numpy."""

import numpy as np
import torch

from subfit import registry
from subfit.calibration.moments import Moments, StreamingMoments
from subfit.fitting.statistics import Pairs, StreamingPairs
from subfit.fitting.substitutes import Assignment, FoldedMap
from subfit.model.activations import Branch
from subfit.model.submodules import Site

D = 12


def site(layer: int = 0, kind: str = "ffn", width: int = D) -> Site:
    return Site(kind, layer, f"{kind}.{layer}", None, None, False, layer, 0, width, 40 * width * width)


def pairs(tokens: int = 400, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs of very different sizes, with a mean, and targets that depend above all on the same dimension."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(tokens, D)) @ (np.eye(D) + 0.2 * rng.normal(size=(D, D)))
    x = mixed * np.logspace(-2, 2, D) + 5 * rng.normal(size=D)
    y = x * rng.normal(size=D) + x @ rng.normal(size=(D, D)) / 10 + noise * rng.normal(size=(tokens, D)) + 3
    return x, y


def sums(*arrays) -> Moments:
    """The moments of inputs, targets and, if given, weights."""
    moments = StreamingMoments(arrays[0].shape[1], arrays[1].shape[1])
    moments.update(*map(torch.as_tensor, arrays))
    return moments.compute()


def statistics(x, y) -> Pairs:
    """What `fit` is given."""
    pairs = {"inputs": torch.as_tensor(x).float(), "targets": torch.as_tensor(y).float()}
    return Pairs(**vars(sums(x, y)), **pairs)


def fitted(name: str, x, y, **options):
    """The module that a bypass fits to pairs."""
    place, given = site(width=np.shape(x)[1]), statistics(x, y)
    bypass = registry.make("bypasses", {"class_path": name, "init_args": options})
    while isinstance(bypass, Assignment):
        bypass = bypass.assign([place])[place]
    branch = Branch(place, torch.nn.Module())
    if isinstance(bypass, FoldedMap):
        return bypass.fit(branch, _as_declared(bypass, given)).requires_grad_(False)
    shared = bypass.fit_shared([place], [given])
    return bypass.fit(branch, _as_declared(bypass, given), shared).requires_grad_(False)


def _as_declared(bypass, given: Pairs) -> Moments:
    """Without the pairs, where they are not asked for."""
    keeps = bypass.statistics is StreamingPairs
    return (
        given
        if keeps
        else Moments(**{name: getattr(given, name) for name in vars(given) if name not in ("inputs", "targets")})
    )


def error(module, x, y) -> float:
    with torch.no_grad():
        return float((module(torch.as_tensor(x).float()) - torch.as_tensor(y).float()).square().sum(1).mean())


def lstsq(x, y, penalty: float = 0.0) -> np.ndarray:
    """Least squares of centred pairs, with a penalty on the squares of the weights."""
    x, y = x - x.mean(0), y - y.mean(0)
    inputs = np.r_[x, np.sqrt(penalty) * np.eye(x.shape[1])]
    return np.linalg.lstsq(inputs, np.r_[y, np.zeros((x.shape[1], y.shape[1]))], rcond=None)[0]
