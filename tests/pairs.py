"""Inputs and targets to fit, what a bypass is given of them, and their least squares by numpy."""

import numpy as np
import torch

from subfit import registry
from subfit.calibration.moments import Moments
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


def sums(*arrays) -> dict:
    """The moments of inputs, targets and, if given, weights."""
    moments = Moments(arrays[0].shape[1])
    moments.update(*map(torch.as_tensor, arrays))
    return moments.compute()


def evidence(x, y) -> dict:
    """What `fit` is given."""
    return {**sums(x, y), "inputs": torch.as_tensor(x).float(), "targets": torch.as_tensor(y).float()}


def fitted(name: str, x, y, **options):
    """The module that a bypass fits to pairs."""
    place, given = site(width=np.shape(x)[1]), evidence(x, y)
    bypass = registry.make("bypasses", {"class_path": name, "init_args": options}).assign([place])[place]
    common = bypass.fit_group([place], [given]) if bypass.needs_group() else None
    return bypass.fit(place, given, common).requires_grad_(False)


def error(module, x, y) -> float:
    with torch.no_grad():
        return float((module(torch.as_tensor(x).float()) - torch.as_tensor(y).float()).square().sum(1).mean())


def lstsq(x, y, penalty: float = 0.0) -> np.ndarray:
    """Least squares of centred pairs, with a penalty on the squares of the weights."""
    x, y = x - x.mean(0), y - y.mean(0)
    inputs = np.r_[x, np.sqrt(penalty) * np.eye(x.shape[1])]
    return np.linalg.lstsq(inputs, np.r_[y, np.zeros((x.shape[1], y.shape[1]))], rcond=None)[0]
