"""The interface of bypasses: the small map that takes a branch's place.

As `full_linear.py`, this is a whole bypass, used by `--ffn_bypass full_linear.py`:

```python
from torch import nn

from subfit import Bypass
from subfit.calibration.moments import Moments
from subfit.fitting.layers import linear_layer
from subfit.fitting.regression import centre, least_squares
from subfit.model.activations import Branch
from subfit.model.submodules import Site


class FullLinear(Bypass):
    \"\"\"x W + b of full rank, by ridge least squares.\"\"\"

    def __init__(self, ridge: float = 0.01) -> None:
        self.ridge = ridge

    def parameters(self, sites: list[Site]) -> int:
        return sum(site.width * (site.width + 1) for site in sites)

    def fit(self, branch: Branch, moments: Moments, shared: None) -> nn.Module:
        c = centre(moments)
        weight = least_squares(c, self.ridge)
        return linear_layer(weight, c.mean_y - c.mean_x @ weight)
```
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import Metric

from subfit.calibration.moments import StreamingMoments
from subfit.errors import SubFitError, where
from subfit.model.activations import Activations, Branch
from subfit.model.submodules import Site
from subfit.strategy import Strategy

Reads = Literal["input", "stream", "nothing"]
Statistics = Callable[[int, int], Metric]


class Substitute(Strategy, ABC):
    """What takes the places of removed submodules.

    In most cases a `Bypass`; in `subfit.fitting.substitutes` are what is no module in the place of one branch: a map that is
    folded into a kept weight, a retrained layer, and an assignment of different substitutes to different sites.
    """

    def parameters(self, sites: list[Site]) -> int:
        """Returns the number of parameters that take the places of these sites together.

        Budgets that are net of what is added ask for it before anything is fitted.

        Raises:
            SubFitError: if the class does not define it.
        """
        name, place = type(self).__name__, where(self)
        raise SubFitError(f"{name} does not tell its size; a net budget needs its parameters() ({place})")

    def cache_shares(self, sites: list[Site]) -> dict[Site, float]:
        """Returns the share of each site's key-value cache that stays: none, if the class does not say otherwise."""
        return dict.fromkeys(sites, 0.0)


class Bypass(Substitute):
    """A small module in the place of one branch, fitted by regression on features of what the branch reads.

    The module is made of `torch.nn` modules (a `Sequential` of `Linear`s, say), or of a class of the plug-in's own that
    uses torch alone and keeps its constructor's arguments as attributes; its source then travels with the checkpoint. The
    same module object may be a part of the `Sequential`s of several sites: it is counted and saved once. What needs more
    than the branch's input is a `KeptGroups`: heads of an Attention that stay, with their part of the cache.

    Attributes:
        reads: what the module is called with: the branch's normed "input", the residual "stream" before its norm, or
            "nothing" of interest.
        statistics: what is accumulated of features and targets, and given to `fit`: `StreamingMoments`, whose memory does
            not depend on the number of tokens; `fitting.statistics.StreamingPairs`, which keep the tokens as well; another
            Metric of your own, made with the number of features and the width; or None, if `fit` needs no data.
    """

    reads: Reads = "input"
    statistics: Statistics | None = StreamingMoments

    def features(self, seen: Activations) -> Tensor:
        """Returns the features of each token that the regression is on, (windows, tokens, f): what the module reads.

        A bypass may take others from what passes the branch, such as `seen.hidden`, the hidden units of a FeedForward or the
        heads of an Attention. Its module is called with what it `reads` all the same, and must compute them from that.
        """
        return seen.h if self.reads == "stream" else seen.x

    def targets(self, seen: Activations, y: Tensor) -> Tensor:
        """Returns what the regression is to give for each token, (windows, tokens, t): y, (windows, tokens, d).

        A bypass whose module goes on after the regression, such as with the branch's output norm, gives what goes into that.

        Args:
            seen: what passes the branch.
            y: what the bypass is to give, which `Recipe.target` decides.
        """
        return y

    def fit_shared(self, sites: list[Site], statistics: Iterable[Any]) -> Any:
        """Returns what all sites of this bypass have in common, such as a basis; `fit` gets it as `shared`.

        Override it only where it is needed: the statistics of all sites are then gathered before the first fit.

        Modules in it, itself or its attributes, are rounded to the model's data type before anything is fitted to them.

        Args:
            sites: the sites that this bypass will replace.
            statistics: of each site on the dense model, as for `fit`, read one site at a time.
        """
        return None

    @abstractmethod
    def fit(self, branch: Branch, statistics: Any, shared: Any) -> nn.Module:
        """Returns the module, mapping (..., d) to (..., d), fitted to one site.

        Args:
            branch: the site to replace, and its modules, which must be left as they are.
            statistics: what was accumulated over the calibration tokens: `Moments`, if the class does not say otherwise.
            shared: what `fit_shared` returned.
        """
