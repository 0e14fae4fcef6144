"""Streaming sufficient statistics for linear regression of what a site adds on what it reads."""

import torch
from torchmetrics import Metric

from subfit.errors import SubFitError

CHUNK = 4096  # tokens converted to float64 at once


class Moments(Metric):
    """Weighted sums over tokens, in float64, from which every closed-form fit follows; the tokens are not kept.

    States, with token weights w: `n` = sum w, `tokens` = number of tokens, `x` = sum w x (d), `y` = sum w y (d), `xx` =
    sum w x x^T (d, d), `xy` = sum w x y^T (d, d), `yy` = sum w |y|^2. They are sums: tokens may come in any order and any
    split, and processes are merged by adding.
    """

    full_state_update = False
    n: torch.Tensor
    tokens: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor

    def __init__(self, width: int):
        super().__init__()
        shapes = {
            "n": (),
            "tokens": (),
            "x": (width,),
            "y": (width,),
            "xx": (width, width),
            "xy": (width, width),
            "yy": (),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Adds tokens.

        Args:
            x, y: (..., d), inputs and targets.
            weight: (...), the weight of each token's squared error; all one if not given.
        """
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        weight = torch.ones(len(x), device=x.device) if weight is None else weight.reshape(-1)
        for start in range(0, len(x), CHUNK):
            a, b, w = (t[start : start + CHUNK].double() for t in (x, y, weight))
            wa = a * w[:, None]
            self.n += w.sum()
            self.tokens += len(a)
            self.x += wa.sum(0)
            self.y += w @ b
            self.xx += wa.T @ a
            self.xy += wa.T @ b
            self.yy += w @ b.square().sum(1)

    def compute(self) -> dict[str, torch.Tensor]:
        """Returns the sums by name.

        Raises:
            SubFitError: if no token was seen, or a sum is not finite.
        """
        sums = {name: getattr(self, name) for name in ("n", "tokens", "x", "y", "xx", "xy", "yy")}
        if self.n <= 0:
            raise SubFitError("no calibration token with a positive weight was seen")
        for name, value in sums.items():
            if not value.isfinite().all():
                raise SubFitError(f"the moment {name} is not finite: the model gives NaN or infinite values")
        return sums
