"""SubFit: post-training compression of language models, one Attention or FeedForward at a time.

`subfit.compress`, `subfit.evaluate`, `subfit.benchmark` and `subfit.load` are what the command line runs.
`Scorer`, `Selector` and `Bypass` are the interfaces of strategies; each has a complete example in its documentation.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subfit.api import compress, evaluate, load
    from subfit.benchmarking.benchmark import benchmark
    from subfit.bypass import Bypass
    from subfit.errors import SubFitError
    from subfit.registry.listing import list_strategies
    from subfit.scorer import Scorer, StreamScorer, TokenMean
    from subfit.selector import Selector

__version__ = "0.1.0"
__all__ = [
    "Bypass",
    "Scorer",
    "Selector",
    "StreamScorer",
    "SubFitError",
    "TokenMean",
    "benchmark",
    "compress",
    "evaluate",
    "list_strategies",
    "load",
]

_MODULES = {
    "Bypass": "bypass",
    "Scorer": "scorer",
    "Selector": "selector",
    "StreamScorer": "scorer",
    "SubFitError": "errors",
    "TokenMean": "scorer",
    "benchmark": "benchmarking.benchmark",
    "list_strategies": "registry.listing",
}


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on first use: the command line's help does not wait for torch
        return getattr(import_module(f"subfit.{_MODULES.get(name, 'api')}"), name)
    raise AttributeError(f"module 'subfit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
