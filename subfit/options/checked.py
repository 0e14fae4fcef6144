"""Arguments of public functions, by the rules that options have."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from subfit.options.annotations import hints
from subfit.options.typed import typed

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that takes what fits the annotations, as options do, and raises SubFitError for anything else.

    Dataclasses may be given as mappings, and strings as paths. Strategies are left to the function.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound, known = inspect.signature(function).bind(*args, **kwargs), hints(function)
        for name, value in bound.arguments.items():
            bound.arguments[name] = typed(known[name], value, name, _kept)
        return function(*bound.args, **bound.kwargs)

    return call


def _kept(hint: type, value: Any, place: str, default: Any) -> Any:
    return value
