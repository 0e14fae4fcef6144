"""Refits the output projection of a kept submodule, so that it makes up for what earlier replacements have changed."""

from collections.abc import Iterable

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


class RefittedProjection(Switch):
    """A refitted output projection in the place of that of a kept submodule.

    Args:
        model: the model.
        path: of the projection.
        refitted: what stands there when it is on.
        own: what stands there when it is off.
    """

    def __init__(self, model: nn.Module, path: str, refitted: nn.Linear, own: nn.Linear):
        super().__init__(model, {path: refitted}, {path: own})
        self._path, self._refitted = path, refitted

    def trainable(self) -> Iterable[nn.Module]:
        """Returns the projection, unless a later switch has put another one in its place, as a folded map does."""
        return (self._refitted,) if self.model.get_submodule(self._path) is self._refitted else ()


@torch.no_grad()
def refit_kept(branch: Branch, moments: Moments, ridge: float) -> RefittedProjection:
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
    refitted = linear_like(branch.model, linear, weight + change.T, bias)
    return RefittedProjection(branch.model, path, refitted, linear)
