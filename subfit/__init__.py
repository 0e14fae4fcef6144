"""SubFit: post-training compression of language models, one Attention or FeedForward at a time.

`subfit.compress(...)`, `subfit.evaluate(...)`, `subfit.benchmark(...)`
and `subfit.load(...)` are what the command line runs; see `subfit.api`.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["SubFitError", "benchmark", "compress", "evaluate", "list_strategies", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on first use: the command line's help does not wait for torch
        from subfit import api

        return getattr(api, name)
    raise AttributeError(f"module 'subfit' has no attribute {name!r}")
