"""Streaming sufficient statistics for linear regression of what a branch adds on features of what it reads."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from subfit.errors import SubFitError

CHUNK = 4096  # tokens converted to float64 at once
BLOCK = 384  # features whose products with those before them are summed at once, as the others follow by symmetry


@dataclass
class Moments:
    """Weighted sums over tokens, in float64, from which every closed-form fit follows; w are the tokens' weights.

    Attributes:
        n: (), sum of w.
        tokens: (), number of tokens.
        x: (f), sum of w x, x the features of a token.
        y: (d), sum of w y, y its target.
        xx: (f, f), sum of w x x^T.
        xy: (f, d), sum of w x y^T.
        yy: (), sum of w |y|^2.
    """

    n: Tensor
    tokens: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


class StreamingMoments(Metric):
    """Accumulates `Moments` batch by batch; the tokens are not kept.

    The states are sums: tokens may come in any order and any split, and processes are merged by adding.

    Args:
        features: f, the number of features.
        width: d, the width of the targets.
    """

    full_state_update = False
    n: Tensor
    tokens: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def __init__(self, features: int, width: int):
        super().__init__()
        shapes: dict[str, tuple[int, ...]] = {
            "n": (),
            "tokens": (),
            "x": (features,),
            "y": (width,),
            "xx": (features, features),
            "xy": (features, width),
            "yy": (),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Adds tokens.

        Args:
            x: (..., f), features.
            y: (..., d), targets.
            weight: (...), the weight of each token's squared error; all one if not given.
        """
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        for start in range(0, len(x), CHUNK):
            a, b = (t[start : start + CHUNK].double() for t in (x, y))
            w = None if weight is None else weight.reshape(-1)[start : start + CHUNK].double()
            wa, wb = (a, b) if w is None else (a * w[:, None], b * w[:, None])
            self.n += len(a) if w is None else w.sum()
            self.tokens += len(a)
            self.x += wa.sum(0)
            self.y += wb.sum(0)
            for low in range(0, a.shape[1], BLOCK):
                high = low + BLOCK
                self.xx[low:high, :high].addmm_(wa[:, low:high].T, a[:, :high])  # what is beside the diagonal, once
            self.xy.addmm_(wa.T, b)
            self.yy += (wb * b).sum()

    def compute(self) -> Moments:
        """Returns the sums.

        Raises:
            SubFitError: if no token was seen, or a sum is not finite.
        """
        lower = self.xx.tril()
        whole = lower + lower.tril(-1).T
        moments = Moments(self.n, self.tokens, self.x, self.y, whole, self.xy, self.yy)
        if self.n <= 0:
            raise SubFitError("no calibration token with a positive weight was seen")
        for name, value in vars(moments).items():
            if not value.isfinite().all():
                raise SubFitError(f"the moment {name} is not finite: the model gives NaN or infinite values")
        return moments
