"""Several bypasses to choose from at each site, tried on windows that they were not fitted on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration, check_subset
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.fitting.integer_programme import Option
from subfit.fitting.trials import Trials, check_copying, fitted_everywhere
from subfit.model.replacing import BypassReplacement
from subfit.model.submodules import KINDS, Site

Way = tuple[Site, Bypass]  # a site, and what takes its place


@dataclass(frozen=True)
class BypassLibrary:
    """What there is to choose from, and how it is tried; see the arguments of the selector `library`.

    Raises:
        SubFitError: if there is no bypass, or there are too few windows or tokens to try one on.
    """

    attention: Sequence[Bypass]
    ffn: Sequence[Bypass]
    fitted_on: int
    windows: int
    length: int
    copying: float

    def __post_init__(self) -> None:
        check_subset(self.windows, self.length)
        check_subset(self.fitted_on, self.length)
        check_copying(self.copying, self.length)
        if not self.attention and not self.ffn:
            raise SubFitError("there is no bypass to choose from; give attention or ffn some")

    def tried(
        self, sites: Collection[Site], budget: Budget, calibration: Calibration
    ) -> tuple[dict[Way, Option], Trials[Way]]:
        """Returns every bypass at each of the sites, with the divergence that it costs alone, and the trials for others."""
        tokens = calibration.subset(self.fitted_on + self.windows, calibration.tokens.shape[1])
        every = max(len(tokens) // self.windows, 2)
        measured = torch.arange(len(tokens)) % every == 0
        fitted_on = Calibration(calibration.model, tokens[~measured], calibration.batch_size)
        budgets: dict[Way, Budget] = {}
        bypassed: dict[Way, BypassReplacement] = {}
        for kind in KINDS:
            own = [site for site in sites if site.kind == kind]
            for bypass in (self.ffn if kind == "ffn" else self.attention) if own else ():
                fitted = fitted_everywhere(fitted_on, bypass, (kind,))
                bypassed.update({(site, bypass): fitted[site] for site in own})
                budgets.update(dict.fromkeys(((site, bypass) for site in own), budget.with_substitutes({kind: bypass})))
        trials = Trials(fitted_on, bypassed, tokens[measured, : self.length], self.copying)
        costs = trials.costs((), [[way] for way in bypassed])
        return {
            (site, bypass): Option(site, cost, budgets[site, bypass], bypass)
            for (site, bypass), cost in zip(bypassed, costs, strict=True)
        }, trials
