"""One of several bypasses for each site, or none, under several budgets at once."""

import torch

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration, check_subset
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.fitting.costs import Unit
from subfit.fitting.integer_programme import Option, cheapest, check_budgets
from subfit.fitting.trials import Trials, check_copying
from subfit.model.submodules import KINDS, Kind, Site
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
        check_subset(windows, length)
        check_subset(fitted_on, length)
        check_copying(copying, length)
        check_budgets(also or {})
        if not attention and not ffn:
            raise SubFitError("library: there is no bypass to choose from")
        self.attention = attention
        self.ffn = ffn
        self.also = also
        self.per_type = per_type
        self.fitted_on = fitted_on
        self.windows = windows
        self.length = length
        self.copying = copying

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> dict[Site, Bypass]:
        tokens = calibration.subset(self.fitted_on + self.windows, calibration.tokens.shape[1])
        every = max(len(tokens) // self.windows, 2)
        measured = torch.arange(len(tokens)) % every == 0
        fitted = Calibration(calibration.model, tokens[~measured], calibration.batch_size)
        options = list[Option]()
        for kind in KINDS:
            bypasses = self.ffn if kind == "ffn" else self.attention
            for bypass in bypasses if any(site.kind == kind for site in scores) else ():
                trials = Trials(fitted, bypass, tokens[measured, : self.length], (kind,), self.copying)
                options += self._options(kind, bypass, scores, budget, trials)
        chosen = cheapest(options, budget, self.also or {}, self.per_type)
        return {option.site: option.bypass for option in chosen if option.bypass is not None}

    def _options(self, kind: Kind, bypass: Bypass, scores: Scores, budget: Budget, trials: Trials) -> list[Option]:
        """A bypass at each site of a kind, with what it costs there."""
        sites = [site for site in scores if site.kind == kind]
        costs = trials.costs((), [[site] for site in sites])
        own = budget.with_substitutes({kind: bypass})
        return [Option(site, cost, own, bypass) for site, cost in zip(sites, costs, strict=True)]
