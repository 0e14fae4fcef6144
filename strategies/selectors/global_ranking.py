"""The lowest scores of all, whatever the type."""

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector, pools


class GlobalRanking(Selector):
    """Takes the lowest-scored sites of both types in one ranking (LLM-Drop, arXiv 2406.15786).

    Args:
        attention_weight, ffn_weight: factors of the scores of each type, where their scales differ; mixers that are
            no Attentions count as these.

    Raises:
        SubFitError: if a weight is not positive.
    """

    def __init__(self, attention_weight: float = 1.0, ffn_weight: float = 1.0) -> None:
        if not (attention_weight > 0 and ffn_weight > 0):
            raise SubFitError(f"global_ranking: weights are {attention_weight} and {ffn_weight}; both must be positive")
        self.attention_weight = attention_weight
        self.ffn_weight = ffn_weight

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        weights = {"attention": self.attention_weight, "mixer": self.attention_weight, "ffn": self.ffn_weight}
        weighted = {site: score * weights[site.kind] for site, score in scores.items()}
        (pool,) = pools(scores, "any")
        return [site for group in budget.fill(pool.ranked(weighted), pool.kinds) for site in group]
