"""The sites that the user names."""

from subfit.errors import SubFitError
from subfit.selector import Selector


class Given(Selector):
    """Takes the named sites, whatever their scores and the budget.

    Args:
        sites: names such as `attention.3`, or `layer.5` for both of a layer.

    Raises:
        SubFitError: if a name fits no site that may be replaced.
    """

    def __init__(self, sites: list[str]):
        self.sites = sites

    def select(self, scores, budget, calibration):
        chosen = []
        for name in self.sites:
            named = [site for site in scores if name in (site.name, f"layer.{site.layer}")]
            if not named:
                raise SubFitError(f"given: no site that may be replaced is called {name!r}")
            chosen += [site for site in named if site not in chosen]
        return chosen
