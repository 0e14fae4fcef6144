"""Models in `.gguf` files, de-quantised once and kept as checkpoints, which load in a tenth of the time.

They are in `$XDG_CACHE_HOME/subfit/gguf` (`~/.cache/subfit/gguf`), under a digest of the file, of the data type that was
asked for and of the versions that convert it. They can be removed at any time.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from subfit.errors import SubFitError
from subfit.model.checkpoint import check_space
from subfit.model.digests import file_digests
from subfit.model.dtypes import name_of
from subfit.model.folders import new_folder
from subfit.model.weights import read_weights

FORMAT = 1  # of an entry
DIGESTS = "digests.json"  # of the files of an entry

Loaded = tuple[Any, Any]  # a model and its tokenizer


def load_gguf(file: Path, dtype: Any, read: Callable[[Path], Loaded]) -> Loaded:
    """Returns the model in a `.gguf` file, on the CPU, and its tokenizer; from the cache if it is there.

    Args:
        dtype: a torch dtype, or `auto`: the one that holds the matrices of the file, bfloat16 if any is quantised.
        read: reads a model and its tokenizer from a folder.
    """
    name = dtype if dtype == "auto" else name_of(dtype)
    with file.open("rb") as content:
        parts = [hashlib.file_digest(content, "sha256").hexdigest(), name, str(FORMAT)]
    parts += [version(package) for package in ("transformers", "tokenizers", "gguf", "torch")]
    entry = cache_folder() / "gguf" / f"{file.stem}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:24]}"
    if not _is_complete(entry) and (converted := _made(entry, file, dtype)) is not None:
        return converted
    return read(entry)


def cache_folder() -> Path:
    """Returns the folder of what is kept between runs, and can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subfit"


def _made(entry: Path, file: Path, dtype: Any) -> Loaded | None:
    """Makes an entry; returns what it would hold if it cannot be kept. Otherwise this is freed before it is loaded again."""
    with _locked(entry) as usable:
        if _is_complete(entry):  # another process has made it meanwhile
            return None
        if usable:
            print(f"subfit: {file.name} is de-quantised once, and kept in {entry}", file=sys.stderr)
        converted = _convert(file, dtype)
        return None if usable and _kept(converted, entry) else converted


def _convert(file: Path, dtype: Any) -> Loaded:
    """Reads a `.gguf` file, which takes seconds for each hundred million weights."""
    wanted = _own_dtype(file) if dtype == "auto" else dtype
    options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True), "dtype": wanted}
    model = read_weights(AutoModelForCausalLM.from_pretrained, file.parent, **options)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _own_dtype(file: Path) -> torch.dtype:
    """The type that holds all matrices of a file without rounding them; bfloat16 if any is quantised."""
    from gguf import GGUFReader

    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    types = {tensor.tensor_type.name for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1}
    if not types <= plain.keys():
        return torch.bfloat16
    return reduce(torch.promote_types, (plain[name] for name in types))


@contextmanager
def _locked(entry: Path) -> Iterator[bool]:
    """Within the context, no other process makes the entry; whether it can be made at all."""
    lock = FileLock(f"{entry}.lock")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _is_complete(entry: Path) -> bool:
    """Whether all files of an entry are what was written."""
    try:
        digests = json.loads((entry / DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and digests == _digests(entry)
    except (OSError, ValueError):
        return False


def _digests(entry: Path) -> dict[str, str]:
    return file_digests(path for path in entry.iterdir() if path.name != DIGESTS)


def _kept(converted: Loaded, entry: Path) -> bool:
    """Writes an entry, and returns whether that was possible: a full disk, say, is no error."""
    shutil.rmtree(entry, ignore_errors=True)  # damaged, if it is there
    try:
        check_space(str(entry), converted[0])
        with new_folder(str(entry)) as folder:
            for part in converted:
                part.save_pretrained(folder)
            (folder / DIGESTS).write_text(json.dumps(_digests(folder)), encoding="utf-8")
    except SubFitError as error:
        print(f"subfit: it is not kept: {error}", file=sys.stderr)
        return False
    return True
