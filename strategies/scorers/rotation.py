"""How far a site turns the residual stream."""

import torch
from torch import Tensor

from subfit.calibration.geometry import angles
from subfit.scorer import TokenMean


class Rotation(TokenMean):
    """Mean rotation of the residual stream, SubFit's first ingredient (arXiv 2606.02559).

        score = mean over tokens of  angle(h, h + y) / pi

    A mean hides what a site does to the few tokens that carry massive activations; the scorer `subfit` does not.
    """

    def each(self, h: Tensor, y: Tensor) -> Tensor:
        return angles(h, h + y) / torch.pi
