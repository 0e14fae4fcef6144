"""How little the residual stream before a site resembles the one after it."""

from torch import Tensor

from subfit.calibration.geometry import angles
from subfit.scorer import TokenMean


class BlockInfluence(TokenMean):
    """Block influence, which ShortGPT gives to layers (arXiv 2403.03853) and LLM-Drop to sites (arXiv 2406.15786).

        score = 1 - mean over tokens of  cos(h, h + y)

    The sum of a layer's sites is not the block influence of the layer, as angles do not add up.
    """

    def each(self, h: Tensor, y: Tensor) -> Tensor:
        return 2 * (angles(h, h + y) / 2).sin().square()  # 1 - cos, exact where it is small
