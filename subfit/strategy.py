"""What scorers, selectors and bypasses have in common: each knows the arguments that it was made with."""

import copy
import inspect
from collections.abc import Iterator
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Strategy:
    """A strategy is defined by its class and its constructor's arguments, which are its options; it is immutable.

    An argument called `seed`, None by default, gets the run's seed; see `with_seed`.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            bound = signature.bind(made, *args, **kwargs)
        except TypeError:  # __init__ will say what is wrong; and a copy is made without arguments
            return made
        bound.apply_defaults()
        named = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)][1:]
        object.__setattr__(made, "_arguments", {name: bound.arguments[name] for name in named})
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.arguments().items())})"

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments by name, defaults included."""
        return dict(vars(self)["_arguments"])


def with_seed(given: T, seed: int) -> T:
    """Returns a copy of a strategy, or of something that holds strategies, with the run's seed.

    Every strategy in it whose argument `seed` is None gets this seed. What was one object is one object in the copy.
    """
    found = copy.deepcopy(given)
    for strategy in _strategies(found, set()):
        if strategy.arguments().get("seed", seed) is None:
            vars(strategy)["_arguments"]["seed"] = seed
            strategy.seed = seed  # type: ignore[attr-defined]
    return found


def _strategies(value: Any, seen: set[int]) -> Iterator[Strategy]:
    """The strategies in a value: itself, its attributes, the items of lists and mappings."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Strategy):
        yield value
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list | tuple):
        inside = list(value)
    else:
        inside = list(vars(value).values()) if isinstance(value, Strategy) or hasattr(value, "__dataclass_fields__") else []
    for item in inside:
        yield from _strategies(item, seen)
