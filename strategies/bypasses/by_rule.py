"""Different bypasses for different sites."""

import re
from fnmatch import fnmatchcase
from typing import Any

from subfit import registry
from subfit.bypass import Bypass
from subfit.errors import SubFitError

Named = str | dict[str, Any]


class ByRule(Bypass):
    """For each site the bypass of the first rule that fits it; the sites of one rule are one group, which may share a basis.

    Args:
        rules: bypasses, by name or with `class_path` and `init_args`, for patterns of site names, such as `ffn.1?`, and for
            ranges of layers, such as `0-9`, both ends included, or `7`.
        default: the bypass of all other sites.

    Raises:
        SubFitError: if a range of layers is empty.
    """

    def __init__(self, rules: dict[str, Named], default: Named = "low_rank"):
        for pattern in rules:
            first, last = _layers(pattern) or (0, 0)
            if first > last:
                raise SubFitError(f"by_rule: the range of layers {pattern} is empty; give the lower one first")
        for bypass in (*rules.values(), default):
            registry.make("bypasses", bypass)  # their options are checked now
        self.rules = rules
        self.default = default

    def assign(self, sites) -> dict:
        return {site: made for bypass, group in self._groups(sites) for site, made in bypass.assign(group).items()}

    def parameters(self, sites) -> int:
        return sum(bypass.parameters(group) for bypass, group in self._groups(sites))

    def fit(self, site, moments, common):
        raise SubFitError("by_rule stands for other bypasses and is not fitted itself; a single bypass is needed here")

    def _groups(self, sites) -> list[tuple[Bypass, list]]:
        """The sites of each rule that fits some, and of the default."""
        groups: dict[str | None, list] = {}
        for site in sites:
            groups.setdefault(next((pattern for pattern in self.rules if _fits(pattern, site)), None), []).append(site)
        given = {pattern: self.default if pattern is None else self.rules[pattern] for pattern in groups}
        return [(registry.make("bypasses", given[pattern]), group) for pattern, group in groups.items()]


def _layers(pattern: str) -> tuple[int, int] | None:
    """The first and the last layer of a range; None for a pattern of names."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", pattern)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def _fits(pattern: str, site) -> bool:
    layers = _layers(pattern)
    return layers[0] <= site.layer <= layers[1] if layers else fnmatchcase(site.name, pattern)
