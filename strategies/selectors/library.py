"""One of several bypasses for each site, or none, under several budgets at once."""

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.fitting.budget import Budget
from subfit.fitting.costs import Unit
from subfit.fitting.integer_programme import cheapest, check_budgets
from subfit.fitting.library import BypassLibrary
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector
from subfit.strategies.bypasses.kept_neurons import KeptNeurons
from subfit.strategies.bypasses.low_rank import LowRank


class Library(Selector):
    """Chooses for each site one of several bypasses, or none, so that the KL divergences add up to least, exactly.

    As Puzzle (arXiv 2411.19146): every bypass is tried at every site by itself, and what it costs is the divergence from the
    dense model, in nats per token, on windows that it was not fitted on. Large bypasses in many places compete with small
    ones in few. The run's own bypasses, and the scores, are not used.

    Args:
        attention: bypasses to choose from for each Attention; none if they are all to stay.
        ffn: the same for each FeedForward.
        also: further budgets, from the unit to the share to save, such as {kv_bytes: 0.4, latency: 0.25}; the units are
            those of `budget`.
        per_type: whether the run's own budget holds for each type of site by itself.
        fitted_on: number of calibration windows that the bypasses are fitted on for the trials.
        windows: number of other calibration windows to measure on.
        length: tokens of each, from its beginning.
        copying: weight of the divergence on as many windows of random tokens, the second half of which repeats the first.

    Raises:
        SubFitError: if there is nothing to choose from, a unit is unknown, `copying` is negative, or the budgets cannot be
            met together.
    """

    def __init__(
        self,
        attention: list[Bypass] = [LowRank()],  # noqa: B006 (a strategy never changes its arguments)
        ffn: list[Bypass] = [LowRank(), KeptNeurons(0.25), KeptNeurons(0.5)],  # noqa: B006 (as above)
        also: dict[Unit, float] | None = None,
        per_type: bool = False,
        fitted_on: int = 16,
        windows: int = 8,
        length: int = 256,
        copying: float = 0.0,
    ) -> None:
        check_budgets(also or {})
        self.library = BypassLibrary(attention, ffn, fitted_on, windows, length, copying)
        self.also = also
        self.per_type = per_type

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> dict[Site, Bypass]:
        options, _ = self.library.tried(scores, budget, calibration)
        chosen = cheapest(list(options.values()), budget, self.also or {}, self.per_type)
        return {option.site: option.bypass for option in chosen if option.bypass is not None}
