"""llama.cpp, in this process, as `subfit benchmark --engine llama.cpp` runs it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from subfit.errors import SubFitError
from subfit.export.engine import Cache, Demand
from subfit.export.llama_cpp import export_gguf
from subfit.export.llama_engine import Engine, require

TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class LlamaModel:
    """A model that llama.cpp has opened; see `engine.ServedModel`."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.version = f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}"
        self.cache = Cache(engine.cache_bytes())

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[float, float]:
        self._engine.clear()
        tokens = np.array(prompts)
        start = time.perf_counter()
        logits = self._engine.read(tokens, 0)
        first = time.perf_counter()
        for step in range(new_tokens):
            logits = self._engine.read(logits.argmax(-1), tokens.shape[1] + step)
        return first - start, time.perf_counter() - first


@contextmanager
def serve(folder: Path, demand: Demand) -> Iterator[LlamaModel]:
    """Yields the model in a folder, which llama.cpp reads from a temporary file until the context ends.

    Raises:
        SubFitError: if llama.cpp is not installed, or cannot hold the model.
    """
    require("the engine llama.cpp")
    if demand.python or demand.compiled:
        raise SubFitError("llama.cpp runs in this Python, and compiles nothing; leave out engine_python and compile")
    with TemporaryDirectory(prefix="subfit-") as temporary:
        path = Path(temporary) / "model.gguf"
        export_gguf(str(folder), str(path), type=TYPES[demand.dtype])
        with Engine(path, demand.tokens, demand.sequences) as engine:
            yield LlamaModel(engine)
