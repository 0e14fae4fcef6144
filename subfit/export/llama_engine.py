"""llama.cpp by its C functions, from the package llama-cpp-python: what it computes, how fast, and its quantiser."""

import ctypes
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from subfit.errors import SubFitError

INSTALL = "pip install llama-cpp-python"
QUANTISED = ("q4_k_m", "q5_k_m", "q6_k")  # what llama.cpp's own quantiser writes
PLAIN = {"type_k": 0, "type_v": 0, "flash_attn_type": 0}  # a cache in float32, and no flash attention


def require(what: str) -> None:
    """Raises SubFitError unless llama.cpp is installed, which `what` needs."""
    if find_spec("llama_cpp") is None:
        raise SubFitError(f"{what} needs llama.cpp: {INSTALL}")


def quantise(source: Path, target: Path, kind: str) -> None:
    """Writes a file with its matrices quantised as `kind`, one of `QUANTISED`, by llama.cpp.

    Raises:
        SubFitError: if llama.cpp is not installed, or cannot.
    """
    lib, log = _library()
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.nthread = torch.get_num_threads()
    settings.allow_requantize = True  # of bfloat16
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(settings)) != 0:
        raise SubFitError(f"llama.cpp cannot quantise the file to {kind}: {_last(log)}")


class Engine:
    """A model that llama.cpp has opened.

    Args:
        path: the file.
        context: the most tokens of one sequence.
        sequences: the most sequences at once.
        settings: of llama.cpp's `llama_context_params`, such as `PLAIN`; its defaults where not given.

    Raises:
        SubFitError: if llama.cpp is not installed, or cannot open the file.
    """

    def __init__(self, path: Path, context: int, sequences: int = 1, **settings: int):
        self._lib, log = _library()
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), self._lib.llama_model_default_params())
        if not self._model:
            raise SubFitError(f"llama.cpp cannot open {path}: {_last(log)}")
        params = self._lib.llama_context_default_params()
        size, threads = context * sequences, torch.get_num_threads()
        given = {"n_ctx": size, "n_batch": size, "n_ubatch": min(size, 512), "n_seq_max": sequences, **settings}
        for name, value in {"n_threads": threads, "n_threads_batch": threads, **given}.items():
            setattr(params, name, value)
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            self._lib.llama_model_free(self._model)
            raise SubFitError(f"llama.cpp cannot run {path}: {_last(log)}")
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self._tokens = self._lib.llama_vocab_n_tokens(self._vocabulary)
        self._memory = self._lib.llama_get_memory(self._context)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def clear(self) -> None:
        """Empties the cache."""
        self._lib.llama_memory_clear(self._memory, True)

    def read(self, tokens: NDArray[np.int64], start: int, every: bool = False) -> NDArray[np.float32]:
        """Reads tokens (sequences, n) after the `start` tokens that the cache holds of each sequence.

        Returns:
            Logits (sequences, n, vocabulary) of all of them, or (sequences, 1, vocabulary) of the last ones.
        """
        sequences, n = tokens.shape
        batch = self._lib.llama_batch_init(tokens.size, 0, 1)
        try:
            batch.n_tokens = tokens.size
            for i, (s, t) in enumerate(np.ndindex(sequences, n)):
                batch.token[i], batch.pos[i] = int(tokens[s, t]), start + t
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, s
                batch.logits[i] = every or t == n - 1
            if self._lib.llama_decode(self._context, batch) != 0:
                raise SubFitError(f"llama.cpp cannot read {tokens.size} tokens: the context is too small")
        finally:
            self._lib.llama_batch_free(batch)
        rows = sequences * (n if every else 1)
        found = np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (rows, self._tokens))
        return found.reshape(sequences, -1, self._tokens).copy()  # llama.cpp writes there again

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Returns the logits (n, vocabulary) of a text."""
        self.clear()
        read: NDArray[np.float32] = self.read(np.array([tokens]), 0, every=True)[0]
        return read

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """Returns the likeliest `count` tokens after a prompt, one after the other."""
        self.clear()
        logits, found = self.read(np.array([prompt]), 0), list[int]()
        while len(found) < count:
            found.append(int(logits[0, -1].argmax()))
            logits = self.read(np.array([found[-1:]]), len(prompt) + len(found) - 1)
        return found

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Returns the tokens of a text; `special` adds those at its start and end, and reads the special ones in it."""
        data = text.encode()
        room = (self._lib.llama_token * (len(data) + 8))()
        n = self._lib.llama_tokenize(self._vocabulary, data, len(data), room, len(room), special, special)
        return list(room[:n])

    def cache_bytes(self) -> int:
        """Returns the bytes of the cache for each token of one sequence, as it saves them: keys, values and some others."""
        sizes = []
        for n in (1, 2):
            self.clear()
            self.read(np.full((1, n), self._tokens // 2), 0)
            sizes.append(self._lib.llama_state_seq_get_size(self._context, 0))
        return int(sizes[1] - sizes[0])


_log: list[str] = []
_keep: list[Any] = []  # the callback that llama.cpp calls


def _library() -> tuple[Any, list[str]]:
    """llama.cpp's functions, and the lines that it logs from now on."""
    require("this")
    from llama_cpp import llama_cpp as lib

    if not _keep:
        _keep.append(lib.llama_log_callback(lambda level, text, data: _log.append(text.decode(errors="replace"))))
        lib.llama_log_set(_keep[0], ctypes.c_void_p(0))
        lib.llama_backend_init()
    _log.clear()
    return lib, _log


def _last(log: list[str]) -> str:
    """The last thing that llama.cpp said of an error."""
    lines = [line.strip() for line in "".join(log).splitlines() if "error" in line or "fail" in line]
    return lines[0] if lines else "it does not say why"
