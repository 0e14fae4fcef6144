"""The run of consecutive layers that moves the stream least."""

from collections import defaultdict
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.model.residual_stream import ResidualStream
from subfit.model.submodules import Site
from subfit.progress import Stage
from subfit.scorer import Scores
from subfit.selector import Selector, pools

CHUNK = 64  # positions whose streams are held in float64 at once


class Contiguous(Selector):
    """Takes n consecutive layers such that the stream leaving them is closest in direction to the stream entering them.

    The distance between h_i and h_{i+n} is the angle over pi (UIDL, arXiv 2403.17887; ReplaceMe, arXiv 2505.02819) or
    1 - cos (LLM-Streamline, arXiv 2403.19135), mean over tokens. The stream after the last layer is the one inside the
    residual path, before the model's final norm. n is the number of layers that fills the budget.

    Args:
        distance: `angle`, or `cosine`; or `scores`, the sum of the sites' scores in the run.
        tokens: `all`, or the `last` of each window, as in UIDL.

    Raises:
        SubFitError: if no run of unprotected layers fills the budget.
    """

    def __init__(
        self, distance: Literal["angle", "cosine", "scores"] = "angle", tokens: Literal["all", "last"] = "all"
    ) -> None:
        self.distance = distance
        self.tokens = tokens

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        (pool,) = pools(scores, "layer")
        count = len(budget.fill(pool.groups, pool.kinds))
        groups = {group[0].layer: group for group in pool.groups}
        starts = [first for first in groups if all(first + i in groups for i in range(count))]
        if not starts or not count:
            if count:
                raise SubFitError(f"contiguous: no {count} consecutive layers without a protected site")
            return []
        if self.distance == "scores":
            distance_of = {first: sum(scores[s] for i in range(count) for s in groups[first + i]) for first in starts}
        else:
            between = distances(calibration)[self.distance, self.tokens]
            distance_of = {first: float(between[first, first + count]) for first in starts}
        best = min(starts, key=distance_of.__getitem__)
        return [site for i in range(count) for site in groups[best + i]]


def distances(calibration: Calibration) -> dict[tuple[str, str], Tensor]:
    """Returns how far the streams before any two layers are apart, by the distance and the tokens; see `Contiguous`.

    They come from one pass, whatever is asked for, and are remembered for other numbers of layers.

    Returns:
        (layers + 1, layers + 1), float64; the last is the stream after all layers.
    """
    if distances not in calibration.memory:
        calibration.memory[distances] = _measured(calibration)
    found: dict[tuple[str, str], Tensor] = calibration.memory[distances]
    return found


@torch.no_grad()
def _measured(calibration: Calibration) -> dict[tuple[str, str], Tensor]:
    """One window's streams at a time; the mean over windows."""
    total: dict[tuple[str, str], Any] = defaultdict(float)
    with Stage("measuring distances between layers", len(calibration.tokens), "windows") as progress:
        for window in torch.split(calibration.tokens, 1):
            stream = ResidualStream(calibration.model, window, 1)
            kept = [stream.hidden[0].clone()]
            while stream.position < len(stream.layers):
                stream.step()
                kept.append(stream.hidden[0].clone())
            rows = (normalize(part.double(), dim=-1) for part in torch.split(torch.stack(kept, 1), CHUNK))
            cosines = torch.cat([(unit @ unit.mT).clamp(-1, 1).cpu() for unit in rows])
            for name, distance in (("angle", cosines.arccos() / torch.pi), ("cosine", 1 - cosines)):
                total[name, "all"] += distance.mean(0) / len(calibration.tokens)
                total[name, "last"] += distance[-1] / len(calibration.tokens)
            progress.advance()
    return total
