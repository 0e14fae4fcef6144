"""Other engines, as `subfit benchmark --engine` runs them: what it asks of each, and where each is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

ENGINES = {"vllm": "subfit.export.vllm_engine", "llama.cpp": "subfit.export.llama_serving"}


@dataclass(frozen=True)
class Demand:
    """What is asked of an engine.

    Attributes:
        dtype: name of the weights' torch dtype.
        tokens: of the longest sequence.
        sequences: the most at once.
        compiled: whether the engine may compile the model.
        python: the Python of the environment that the engine is in; this one if not given.
    """

    dtype: str
    tokens: int
    sequences: int
    compiled: bool = False
    python: str | None = None


@dataclass(frozen=True)
class Cache:
    """The key-value cache of a served model.

    Attributes:
        bytes_per_token: of one sequence.
        tokens: how many fit in the memory that the engine has set aside; None where it sets none aside.
    """

    bytes_per_token: float
    tokens: int | None = None


class ServedModel(Protocol):
    """A model that an engine has opened.

    Attributes:
        version: the engine and its version.
        cache: of this model.
    """

    version: str
    cache: Cache

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[float, float]:
        """Generates tokens greedily after all prompts at once, which no cache of an earlier call may know.

        Returns:
            The seconds until the first token of each, and those that `new_tokens` further ones take.
        """


def open_model(engine: str, folder: Path, demand: Demand) -> AbstractContextManager[ServedModel]:
    """Opens the model in a folder, dense or compressed, in an engine: one of `ENGINES`.

    The module of an engine has a function `serve(folder, demand)` for it.

    Raises:
        SubFitError: if the engine is not installed, or cannot serve the model.
    """
    serve = import_module(ENGINES[engine]).serve
    return cast(Callable[[Path, Demand], AbstractContextManager[ServedModel]], serve)(folder, demand)
