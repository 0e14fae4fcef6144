"""vLLM, in a process of the environment that it is installed in; see `vllm_worker` for that process."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from subfit.errors import SubFitError
from subfit.export.engine import Cache, Demand

ON_CPU = {  # where not set; elsewhere they have no effect
    "KMP_BLOCKTIME": "0",  # a thread that has nothing to do sleeps, as two models are timed in turns
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # the memory of a prompt stays with the process, and its pages need not be cleared again for the next one
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class VllmModel:
    """A model that a process of vLLM serves; see `engine.ServedModel`."""

    def __init__(self, process: subprocess.Popen[str], log: IO[bytes], folder: Path):
        self._process, self._log, self._folder = process, log, folder
        started = self._answer()
        self.version = str(started["version"])
        self.cache = Cache(started["bytes_per_token"], started["tokens"])

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": [list(p) for p in prompts], "new_tokens": new_tokens}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["prefill"], answer["decode"]

    def _answer(self) -> dict[str, Any]:
        """The next line of the process.

        Raises:
            SubFitError: if it has failed.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": self._last_words()}
        if "error" in found:
            raise SubFitError(f"vLLM cannot serve {self._folder}: {found['error']}")
        return dict(found)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its process has ended without a message"


@contextmanager
def serve(folder: Path, demand: Demand) -> Iterator[VllmModel]:
    """Yields the model in a folder, served by vLLM until the context ends.

    Raises:
        SubFitError: if vLLM is not installed, or cannot serve the model.
    """
    python = demand.python or sys.executable
    if demand.python is None and find_spec("vllm") is None:
        raise SubFitError("vLLM is not installed here; give --engine_python, the Python of the environment that it is in")
    cores = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    environment = {**ON_CPU, **cores, **os.environ, **QUIET}
    asked = json.dumps({**asdict(demand), "folder": str(folder)})
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with tempfile.TemporaryFile() as log:
        command = [python, "-P", "-m", "subfit.export.vllm_worker", asked]
        try:
            process = subprocess.Popen(command, stderr=log, **pipes)
        except OSError as error:
            raise SubFitError(f"the Python {python} cannot be run: {error.strerror}") from error
        with process:
            try:
                yield VllmModel(process, log, folder)
            finally:
                process.kill()  # it holds nothing that must be kept
