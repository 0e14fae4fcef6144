"""How much a site changes which tokens are near each other."""

import torch
from torch import Tensor

from subfit.errors import SubFitError
from subfit.scorer import TokenMean


class Neighbourhood(TokenMean):
    """Share of a token's nearest neighbours that a site exchanges.

        score = 1 - mean over tokens of  |N(h) & N(h + y)| / k

    N are the k tokens of the same window with the highest cosine similarity to the token, itself excluded. This follows the
    idea of judging layers by how they change the topology of the cloud of tokens (persistent topological features,
    arXiv 2410.11042), with graphs of nearest neighbours in place of persistent homology. Two (tokens, tokens) matrices of
    one window are held.

    Args:
        neighbours: k; in a window of k tokens or less, all of the others.

    Raises:
        SubFitError: if `neighbours` is not positive.
    """

    def __init__(self, neighbours: int = 10) -> None:
        super().__init__()
        if neighbours < 1:
            raise SubFitError(f"neighbourhood: neighbours is {neighbours}; it must be at least 1")
        self.neighbours = neighbours

    def each(self, h: Tensor, y: Tensor) -> Tensor:
        k = min(self.neighbours, h.shape[1] - 1)
        lost = [(_nearest(a, k) & ~_nearest(b, k)).sum(-1) for a, b in zip(h, h + y, strict=True)]
        return torch.stack(lost) / max(k, 1)


def _nearest(points: Tensor, k: int) -> Tensor:
    """Whether the token of each column is one of the k nearest of the row's, (tokens, tokens)."""
    unit = torch.nn.functional.normalize(points, dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, similarity.topk(k).indices, True)
