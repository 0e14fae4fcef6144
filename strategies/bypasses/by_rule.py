"""Different bypasses for different sites."""

import copy
import re
from fnmatch import fnmatchcase

from subfit.bypass import Substitute
from subfit.errors import SubFitError
from subfit.fitting.substitutes import Assignment
from subfit.model.submodules import Site
from subfit.strategies.bypasses.low_rank import LowRank


class ByRule(Assignment):
    """For each site the bypass of the first rule that fits it; the sites of one rule are one group, which may share a basis.

    An object that is given to two rules is two bypasses all the same.

    Args:
        rules: bypasses for patterns of site names, such as `ffn.1?`, and for ranges of layers, such as `0-9`, both ends
            included, or `7`.
        default: the bypass of all other sites.

    Raises:
        SubFitError: if a range of layers is empty.
    """

    def __init__(self, rules: dict[str, Substitute], default: Substitute = LowRank()) -> None:
        for pattern in rules:
            first, last = _layers(pattern) or (0, 0)
            if first > last:
                raise SubFitError(f"by_rule: the range of layers {pattern} is empty; give the lower one first")
        self.rules = rules
        self.default = default

    def assign(self, sites: list[Site]) -> dict[Site, Substitute]:
        rules = {pattern: copy.copy(bypass) for pattern, bypass in self.rules.items()}
        default = copy.copy(self.default)
        return {site: next((rules[pattern] for pattern in rules if _fits(pattern, site)), default) for site in sites}


def _layers(pattern: str) -> tuple[int, int] | None:
    """The first and the last layer of a range; None for a pattern of names."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", pattern)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def _fits(pattern: str, site: Site) -> bool:
    layers = _layers(pattern)
    return layers[0] <= site.layer <= layers[1] if layers else fnmatchcase(site.name, pattern)
