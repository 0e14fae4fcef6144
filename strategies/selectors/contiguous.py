"""The run of consecutive layers that moves the stream least."""

from typing import Literal

import torch

from subfit.errors import SubFitError
from subfit.geometry import angles
from subfit.selector import Selector, pools
from subfit.stream import ResidualStream


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

    def __init__(self, distance: Literal["angle", "cosine", "scores"] = "angle", tokens: Literal["all", "last"] = "all"):
        self.distance = distance
        self.tokens = tokens

    def select(self, scores, budget, calibration):
        (pool,) = pools(scores, "layer")
        count = len(budget.fill(pool.groups, pool.kinds))
        groups = {group[0].layer: group for group in pool.groups}
        starts = [first for first in groups if all(first + i in groups for i in range(count))]
        if not starts or not count:
            if count:
                raise SubFitError(f"contiguous: no {count} consecutive layers without a protected site")
            return []
        if self.distance == "scores":
            moved = {first: sum(scores[s] for i in range(count) for s in groups[first + i]) for first in starts}
        else:
            moved = self._distances(calibration, count)
        best = min(starts, key=moved.__getitem__)
        return [site for i in range(count) for site in groups[best + i]]

    @torch.no_grad()
    def _distances(self, calibration, count) -> dict[int, float]:
        """The distance between the streams before layer i and before layer i + count; one window's streams at a time."""
        total: dict[int, float] = {}
        for window in calibration.tokens.split(1):
            stream = ResidualStream(calibration.model, window, 1)
            kept = [self._tokens_of(stream)]
            while stream.position < len(stream.layers):
                for _ in stream.advance():
                    pass
                kept.append(self._tokens_of(stream))
            for first, (before, after) in enumerate(zip(kept, kept[count:], strict=False)):
                angle = angles(before, after)
                distance = angle / torch.pi if self.distance == "angle" else 1 - angle.cos()
                total[first] = total.get(first, 0.0) + float(distance.double().mean())
        return total

    def _tokens_of(self, stream):
        hidden = stream.hidden[:, -1:] if self.tokens == "last" else stream.hidden
        return hidden.float().clone()
