"""What rows and cached scores depend on besides the options, and when they are out of date.

**A row counts as done** for a cell if it was run with the cell's options and all of this is as it is now: the versions of
torch and transformers; where the data type is `auto`, the narrow types that the device computes in natively; the model's
files (of large ones the beginning and the end); the files of the strategies, with nested ones, base classes and what they
import from their folder; the texts and the tasks. All of
that is known before the model is loaded. A row that does not say what it depends on, as those of format 1, does not count.
The code of `subfit` itself is recorded (`commit`), but not compared: after a bug fix, an ablation goes on where it was.

**Scores and moments** are cached under a digest of all that they can depend on, the code of `subfit` included: a miss only
costs time. See `calibration_digest` and `scores_name`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from subfit import registry
from subfit.ablation.plugin_files import files_of
from subfit.calibration.files import text_files
from subfit.calibration.settings import Data
from subfit.config import Options
from subfit.model.digests import tensor_bytes
from subfit.model.dtypes import describe_dtypes, native
from subfit.model.loading import device_of, files_of_model
from subfit.model.offloading import state_parts
from subfit.scorer import Scorer

END = 1 << 25  # bytes at either end of a large file that are read for its digest


def dependencies(options: Options, texts: Iterable[Data], tasks: Iterable[str]) -> dict[str, Any]:
    """Returns what the row of a run depends on beside its options, as plain data; see above.

    Args:
        texts, tasks: what else it is evaluated on: texts, and files of tasks.
    """
    files = text_files(name for data in (options.calibration, options.evaluation, *texts) for name in data.path)
    model = files_of_model(options.model) if options.model else []
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "native_dtypes": native(device_of(options.device)) if options.dtype == "auto" else None,
        "model": _digest_of_files(model) if model else None,
        "strategies": _digest_of_files(files_of(vars(options.recipe))),
        "data": _digest_of_files(Path(name) for name in (*files, *tasks)),
    }


def calibration_digest(model: Any, tokens: Tensor, batch_size: int) -> str:
    """Returns the digest under which moments and scores of a model on some tokens are kept."""
    config = {**model.config.to_dict(), "_name_or_path": None, "attention": model.config._attn_implementation}
    settings = [batch_size, list(tokens.shape), str(model.device.type), config]
    settings += [describe_dtypes(model), torch.__version__, transformers.__version__, version("subfit")]
    pieces = [json.dumps(settings, sort_keys=True, default=str).encode(), tensor_bytes(tokens)]
    tensors = (value for part in state_parts(model) for value in part.values())
    weights = (piece for value in tensors for piece in (str(value.dtype).encode(), tensor_bytes(value)))
    return digest([*pieces, *(path.read_bytes() for path in _sources())], weights)


def scores_name(scorer: Scorer) -> str:
    """Returns what the scores of a scorer are called in the cache: by its arguments, its seed included, and its files."""
    spec = json.dumps(registry.spec(scorer), sort_keys=True).encode()
    return "scores-" + digest([spec, _digest_of_files(files_of(scorer)).encode()])


def digest(*groups: Iterable[bytes]) -> str:
    """Returns the beginning of the SHA-256 of some bytes."""
    found = hashlib.sha256()
    for pieces in groups:
        for piece in pieces:
            found.update(piece)
    return found.hexdigest()[:32]


def _digest_of_files(paths: Iterable[Path]) -> str:
    """The digest of files' names and contents; it does not depend on their order and folders."""
    return digest(sorted(_digest_of_file(path, path.stat().st_mtime_ns).encode() for path in set(paths) if path.is_file()))


@cache
def _digest_of_file(path: Path, modified: int) -> str:
    """The digest of a file's name, size and content; of a large one, of its beginning and its end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        pieces = [path.name.encode(), str(size).encode(), file.read(END)]
        if size > END:
            file.seek(max(END, size - END))
            pieces.append(file.read())
    return digest(pieces)


def _sources() -> Iterator[Path]:
    """The code of this package, its strategies included."""
    for folder in (Path(__file__).parents[1], *map(Path, import_module("subfit.strategies").__path__)):
        yield from sorted(folder.rglob("*.py"))
