"""The interface of selectors: which sites to replace.

As `deepest.py`, this is a whole selector, used by `--selector deepest.py`:

```python
from subfit import Selector
from subfit.calibration.capture import Calibration
from subfit.fitting.budget import Budget
from subfit.model.submodules import KINDS, Site
from subfit.scorer import Scores


class Deepest(Selector):
    \"\"\"Takes the deepest Attentions and the deepest FeedForwards, whatever their scores.\"\"\"

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        chosen = []
        for kind in KINDS:
            deepest_first = [(site,) for site in reversed(scores) if site.kind == kind]
            chosen += budget.fill(deepest_first, [kind])
        return [site for (site,) in chosen]
```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from subfit.fitting.budget import Budget
from subfit.model.submodules import KINDS, Kind, Site
from subfit.scorer import Scores
from subfit.strategy import Strategy

if TYPE_CHECKING:
    from subfit.bypass import Bypass
    from subfit.calibration.capture import Calibration


class Selector(Strategy, ABC):
    """Chooses the sites to replace, given their scores and how much is to go."""

    @abstractmethod
    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site] | dict[Site, Bypass]:
        """Returns the sites to replace, or which bypass of its own choice takes the place of each.

        Args:
            scores: the score of every site that may be replaced, lower is safer; in the order of the stream.
            budget: how much to take out; `Budget.fill` keeps to it.
            calibration: the model and its calibration tokens, for selectors that search.
        """


@dataclass(frozen=True)
class Pool:
    """Groups of sites that are replaced together, and the kinds of site whose part of the budget they fill."""

    kinds: tuple[Kind, ...]
    groups: list[tuple[Site, ...]]

    def ranked(self, scores: Mapping[Site, float]) -> list[tuple[Site, ...]]:
        """Returns the groups by the sum of their sites' scores, the lowest first; equals by depth."""
        return sorted(self.groups, key=lambda group: sum(scores[site] for site in group))


def pools(sites: Iterable[Site], unit: Literal["submodule", "layer", "any"]) -> list[Pool]:
    """Returns what is chosen from: one pool for each type of `submodule`, whole `layer`s, or single sites of `any` type."""
    sites = list(sites)
    if unit == "layer":
        layers = {site.layer: tuple(s for s in sites if s.layer == site.layer) for site in sites}
        return [Pool(KINDS, [group for group in layers.values() if len(group) == group[0].layer_sites])]
    if unit == "any":
        return [Pool(KINDS, [(site,) for site in sites])]
    return [Pool((kind,), [(site,) for site in sites if site.kind == kind]) for kind in KINDS]
