"""Refits the output projection of a kept submodule, so that it makes up for what earlier replacements have changed."""

import torch
from torch import nn

from subfit.calibration.moments import Moments
from subfit.fitting.layers import output_norm_of
from subfit.fitting.regression import centre, least_squares, uncentred
from subfit.model.activations import Branch
from subfit.model.folding import linear_like
from subfit.model.processes import full_tensor
from subfit.model.replacing import Switch


def may_be_refitted(branch: Branch) -> bool:
    """Whether a submodule ends in a linear layer, with no output norm behind it but RMSNorm."""
    site = branch.site
    ends = site.output_projection is not None and isinstance(branch.output_projection, nn.Linear)
    return ends and (site.output_norm is None or output_norm_of(branch) is not None)


@torch.no_grad()
def refit_kept(branch: Branch, moments: Moments, ridge: float) -> Switch:
    """Returns the output projection W + D of a kept submodule, b + e for its bias where it has one, switched off.

    D minimises E|r - z D|^2 + ridge * mean variance of z * |D|^2: ridge regression towards the own weights W. Nothing is
    added to the model. Where there is no bias, moments are not centred, as nothing could take up a mean.

    Args:
        branch: see `may_be_refitted`.
        moments: of what the projection reads, z (f), and of what its output lacks of the target, r (d).
        ridge: above 0.
    """
    path, linear = branch.site.output_projection, branch.output_projection
    assert path is not None and isinstance(linear, nn.Linear)
    weight = full_tensor(linear.weight).double()
    c = centre(moments) if linear.bias is not None else uncentred(moments)
    change = least_squares(c, ridge)
    bias = None if linear.bias is None else full_tensor(linear.bias).double() + c.mean_y - c.mean_x @ change
    refitted: nn.Module = linear_like(branch.model, linear, weight + change.T, bias)
    return Switch(branch.model, {path: refitted}, {path: linear})
