"""Fits one substitute, checks what was fitted, and makes it a replacement in the model."""

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from subfit.bypass import Bypass, Substitute
from subfit.calibration.moments import Moments
from subfit.errors import SubFitError, attribute_errors_to, where
from subfit.fitting.regression import explained_variance
from subfit.fitting.statistics import maps_input_to_output
from subfit.fitting.substitutes import FoldedMap
from subfit.model.activations import Branch
from subfit.model.dtypes import placed
from subfit.model.folding import folded, output_projection
from subfit.model.modeling_subfit import Constant, Scale, token_map
from subfit.model.offloading import loaded
from subfit.model.replacing import BypassReplacement, FoldedReplacement
from subfit.model.submodules import Site, decoder_layers


def fit_bypass(branch: Branch, bypass: Bypass, statistics: Any, shared: Any) -> BypassReplacement:
    """Fits a bypass to the statistics of a site, and returns it in its place, switched off.

    Raises:
        SubFitError: if what was fitted does not map the stream's width to itself, or is not finite.
    """
    with _weights_of(branch, branch.site):
        with torch.enable_grad(), attribute_errors_to(bypass):
            module = bypass.fit(branch, statistics, shared)
        _check_type(module, branch.site, bypass)
        replacement = BypassReplacement(branch.model, branch.site, module, bypass.reads)
    _check_values(replacement.bypass, branch.site, bypass)
    if maps_input_to_output(bypass) and isinstance(statistics, Moments):
        replacement.explained = _explained_variance(replacement.bypass, statistics)
    return replacement


def fit_folded_map(
    branch: Branch, substitute: FoldedMap, statistics: Any, source: Site
) -> tuple[FoldedReplacement, nn.Module]:
    """Fits a map of what the FeedForward `source` adds; returns the replacement, switched off, and the map.

    Raises:
        SubFitError: as `fit_bypass`, or if `source` has no output projection.
    """
    with _weights_of(branch, branch.site, source):
        with torch.enable_grad(), attribute_errors_to(substitute):
            module = substitute.fit(branch, statistics)
        _check_type(module, branch.site, substitute)
        path = output_projection(branch.model, source)
        linear = branch.model.get_submodule(path)
        replacement = FoldedReplacement(branch.model, branch.site, path, folded(branch.model, linear, module))
        module = placed(module, branch.model, next(linear.parameters()))
    _check_values(module, branch.site, substitute)
    if isinstance(statistics, Moments):
        replacement.explained = _explained_variance(module, statistics)
    return replacement, module


def _weights_of(branch: Branch, *sites: Site) -> AbstractContextManager[None]:
    """Has the weights of the layers of some sites in memory."""
    _, layers = decoder_layers(branch.model)
    return loaded(*(layers[site.layer] for site in sites))


def _check_type(module: Any, site: Site, substitute: Substitute) -> None:
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise SubFitError(f"{site.name}: fit must return a module, not {kind} ({where(substitute, 'fit')})")


def _check_values(module: nn.Module, site: Site, substitute: Substitute) -> None:
    """Raises SubFitError unless `module` maps rows of the stream's width to the same, and is finite."""
    place = where(substitute, "fit")
    parameters = list(module.parameters())
    if not all(p.isfinite().all() for p in parameters):
        raise SubFitError(f"{site.name}: the fitted bypass has NaN or infinite parameters ({place})")
    like = parameters[0] if parameters else torch.empty(0)
    with torch.no_grad(), attribute_errors_to(substitute):
        gave = token_map(module)(torch.zeros(2, site.width, device=like.device, dtype=like.dtype))
    if gave.shape != (2, site.width):
        shape = tuple(gave.shape)
        raise SubFitError(f"{site.name}: the bypass maps (2, {site.width}) to {shape}; both must be the same ({place})")


def _explained_variance(module: nn.Module, moments: Moments) -> float | None:
    """R^2 of a bypass made of linear pieces alone, on the tokens it was fitted to; None for any other."""
    leaves = [m for m in module.modules() if not isinstance(m, nn.Sequential)]
    if not all(isinstance(leaf, nn.Linear | Scale | Constant) for leaf in leaves):
        return None
    exact = copy.deepcopy(module).to(moments.xx.device, torch.float64)
    with torch.no_grad():
        bias = exact(torch.zeros_like(moments.x))
        linear_map = exact(torch.eye(len(moments.x), dtype=torch.float64, device=bias.device)) - bias
    return explained_variance(moments, linear_map, bias)
