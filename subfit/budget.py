"""What a sparsity of 25 % means: that share of the layers' Attentions, and that share of their FeedForwards."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from subfit.errors import SubFitError
from subfit.sites import Kind, Site


@dataclass(frozen=True)
class Budget:
    """How many sites of each type to replace."""

    attention: int
    ffn: int

    def of(self, kind: Kind) -> int:
        """The number of sites of one type."""
        return self.attention if kind == "attention" else self.ffn


def budget_for(sparsity: float, sites: Iterable[Site]) -> Budget:
    """Returns the paper's budget: round(sparsity * n) of the n sites of each type, halves rounded up (arXiv 2606.02559).

    Raises:
        SubFitError: if `sparsity` is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise SubFitError(f"sparsity is {sparsity}; it must be at least 0 and less than 1")
    kinds = [site.kind for site in sites]
    return Budget(*(math.floor(sparsity * kinds.count(kind) + 0.5) for kind in ("attention", "ffn")))
