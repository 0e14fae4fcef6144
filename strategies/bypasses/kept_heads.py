"""An Attention's own most needed key-value groups and a low-rank map, in its place."""

import torch
from torch import Tensor, nn

from subfit.bypass import Bypass
from subfit.calibration.moments import Moments
from subfit.errors import SubFitError
from subfit.fitting.kept_units import Prior, fit_beside, unexplained_energy
from subfit.fitting.key_value_groups import attention_of_groups, output_of_groups
from subfit.fitting.layers import linear_layer
from subfit.fitting.regression import centre, check_ridge
from subfit.model.activations import Activations, Branch
from subfit.model.modeling_subfit import KeptGroups, Zero
from subfit.model.submodules import Site


class KeptHeads(Bypass):
    """x A B + z_S V + b: a low-rank map of the input x, and the heads z_S of some of the Attention's own key-value groups.

    Structured pruning of heads with least-squares compensation, as a bypass. Kept are the groups with the most energy, the
    sum over their dimensions of |W_out,j|^2 times the variance of z_j that x does not explain, with all their query heads.
    Their rows of the query, key and value projections stay as they are; A B and V are fitted together, as `kept_neurons`
    does it. The key-value cache keeps the share of these groups. A fine-tuning trains all of it, these rows included.

    Args:
        groups: how many key-value groups to keep; fewer than the Attention has.
        share: parameters of the low-rank map as a share of the removed ones; 0 for none.
        ridge: penalty on A B and on V minus its prior, relative to the mean variance of x and of z_S.
        prior: what V is drawn to: `zero`, or `weights`, the heads' own rows of W_out, which carry over to other text.

    Raises:
        SubFitError: if `groups` or `share` is out of its range.
    """

    def __init__(self, groups: int = 1, share: float = 0.1, ridge: float = 1e-4, prior: Prior = "zero") -> None:
        check_ridge(ridge)
        if groups < 1 or not share >= 0:
            raise SubFitError(f"kept_heads: groups is {groups} and share {share}; give at least 1, and at least 0")
        self.groups = groups
        self.share = share
        self.ridge = ridge
        self.prior = prior

    def parameters(self, sites: list[Site]) -> int:
        return sum(
            self._kept(site) * site.group_parameters + site.common_parameters + (2 * self._rank(site) + 1) * site.width
            for site in sites
        )

    def cache_shares(self, sites: list[Site]) -> dict[Site, float]:
        return {site: self._kept(site) / site.groups for site in sites}

    def features(self, seen: Activations) -> Tensor:
        return torch.cat([seen.x, seen.hidden], -1)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        site, c = branch.site, centre(moments)
        count, rank = self._kept(site), self._rank(site)
        output = output_of_groups(branch).flatten(0, 1)
        energy = unexplained_energy(c, output, self.ridge).reshape(site.groups, -1).sum(1)
        kept = energy.topk(count).indices.sort().values
        units = torch.arange(site.hidden, device=kept.device).reshape(site.groups, -1)[kept].flatten()
        attention = attention_of_groups(branch, kept.tolist())
        found = fit_beside(c, output, units, rank, self.ridge, self.prior)
        attention.get_submodule(site.output_name).load_state_dict({"weight": found.v.T, "bias": found.bias})
        beside = nn.Sequential(linear_layer(found.a), linear_layer(found.b)) if rank else Zero()
        return KeptGroups(attention, beside, site.slot, site.groups, count)

    def _kept(self, site: Site) -> int:
        if site.kind != "attention" or not site.groups:
            raise SubFitError(f"kept_heads: {site.name} has no key-value heads; use it for Attentions with a cache of them")
        if self.groups >= site.groups:
            said = f"it must be less than {site.groups}, the key-value heads of {site.name}"
            raise SubFitError(f"kept_heads: groups is {self.groups}; {said}")
        return self.groups

    def _rank(self, site: Site) -> int:
        rank = min(int(self.share * site.parameters // (2 * site.width)), site.width)
        if self.share and not rank:
            raise SubFitError(f"kept_heads: {self.share} of {site.name} is less than rank 1; give a larger share, or 0")
        return rank
