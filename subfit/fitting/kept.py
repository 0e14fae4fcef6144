"""Refits the output projection of a kept submodule, so that it makes up for what earlier replacements have changed."""

from typing import Any

import torch
from torch import nn

from subfit.calibration.moments import Moments
from subfit.fitting.regression import centre, least_squares, uncentred
from subfit.model.activations import Branch
from subfit.model.folding import linear_like, output_projection
from subfit.model.processes import full_tensor
from subfit.model.replacing import Switch


@torch.no_grad()
def refit_kept(branch: Branch, moments: Moments, ridge: float) -> Switch:
    """Returns the output projection W + D of a kept submodule, b + e for its bias where it has one, switched off.

    D minimises E|r - z D|^2 + ridge * mean variance of z * |D|^2: ridge regression towards the own weights W. Nothing is
    added to the model. Where there is no bias, moments are not centred, as nothing could take up a mean.

    Args:
        moments: of what the projection reads, z (f), and of what its output lacks of the target, r (d).
        ridge: above 0.

    Raises:
        SubFitError: if the submodule does not end in a linear layer.
    """
    path = output_projection(branch.model, branch.site)
    linear: Any = branch.model.get_submodule(path)
    weight = full_tensor(linear.weight).double()
    c = centre(moments) if linear.bias is not None else uncentred(moments)
    change = least_squares(c, ridge)
    bias = None if linear.bias is None else full_tensor(linear.bias).double() + c.mean_y - c.mean_x @ change
    refitted: nn.Module = linear_like(branch.model, linear, weight + change.T, bias)
    return Switch(branch.model, {path: refitted}, {path: linear})
