"""The sites that the user names."""

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.model.submodules import Site
from subfit.scorer import Scores
from subfit.selector import Selector


class Given(Selector):
    """Takes the named sites, whatever their scores and the budget.

    Args:
        sites: names such as `attention.3`, or `layer.5` for both of a layer.

    Raises:
        SubFitError: if a name fits no site that may be replaced.
    """

    def __init__(self, sites: list[str]) -> None:
        self.sites = sites

    def select(self, scores: Scores, budget: Budget, calibration: Calibration) -> list[Site]:
        chosen = []
        for name in self.sites:
            named = [site for site in scores if name in (site.name, f"layer.{site.layer}")]
            if not named:
                raise SubFitError(f"given: no site that may be replaced is called {name!r}")
            chosen += [site for site in named if site not in chosen]
        return chosen
