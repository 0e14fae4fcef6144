"""Some key-value groups of an Attention by themselves, checked against the Attention that they are taken from."""

from typing import Any

import torch
from torch import Tensor, nn

from subfit.errors import SubFitError, is_lack_of_memory, summary
from subfit.model.activations import Branch, watch
from subfit.model.modeling_subfit import keep_groups
from subfit.model.processes import full_tensor
from subfit.model.recording import probe_tokens
from subfit.model.submodules import main_output

TOKENS = 6  # that the groups are compared on


def output_of_groups(branch: Branch) -> Tensor:
    """Returns the output weights of each key-value group of an Attention, (groups, dimensions of its heads, d), in float64.

    Raises:
        SubFitError: if the Attention has none.
    """
    site, projection = branch.site, branch.output_projection
    if not site.groups or site.hidden % site.groups or not isinstance(projection, nn.Linear):
        raise SubFitError(f"{_named(branch)} has no linear projections of key-value heads, of which some could be kept")
    return full_tensor(projection.weight).double().T.reshape(site.groups, -1, site.width)


@torch.no_grad()
def attention_of_groups(branch: Branch, kept: list[int]) -> nn.Module:
    """Returns a copy of an Attention with some of its key-value groups alone, whose output projection has a bias.

    It is run beside the Attention: it must give what that gives with zeros in the output weights of the other groups. The
    model is run for this up to the Attention, on a few tokens.

    Args:
        branch: an Attention that `output_of_groups` takes.
        kept: the indices of the groups.

    Raises:
        SubFitError: if it gives something else, as where one projection makes queries, keys and values.
    """
    site = branch.site
    base: Any = branch.model.base_model
    with watch(branch.model, site, "y") as seen:
        base(probe_tokens(branch.model, TOKENS), use_cache=False)
    heads = seen.hidden
    with branch.present():
        expected = branch.output_projection(_others_zeroed(heads, site.groups, kept))
        try:
            attention = keep_groups(branch.core, site.output_name, site.groups, kept)
            args, kwargs = seen.arguments
            gave = main_output(attention(*args, **kwargs)).reshape(expected.shape)
        except Exception as error:  # whatever a module says of projections that it is not made for
            if is_lack_of_memory(error):
                raise
            raise SubFitError(
                f"{_named(branch)} does not run with some of its heads alone, and needs another bypass: {summary(error)}"
            ) from error
    if not (gave - expected).norm() <= torch.finfo(gave.dtype).eps ** 0.5 * expected.norm():
        raise SubFitError(f"{_named(branch)} gives something else with some of its heads alone; it needs another bypass")
    return attention


def _named(branch: Branch) -> str:
    return f"{branch.site.name} ({type(branch.core).__name__})"


def _others_zeroed(heads: Tensor, groups: int, kept: list[int]) -> Tensor:
    """Heads (..., f) with zeros in all groups but those that are kept."""
    mask = torch.zeros(groups, 1, dtype=heads.dtype, device=heads.device)
    mask[kept] = 1
    return (heads.unflatten(-1, (groups, -1)) * mask).flatten(-2)
