"""Digests of tensors and of files, by which the same data are known again."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from subfit.errors import SubFitError
from subfit.options.reading import read_json

RECORD = "compression.json"
CHECKED = ("config.json", "*.safetensors", "*.safetensors.index.json")  # files of a checkpoint that decide what it computes


def tensor_bytes(tensor: Tensor) -> bytes:
    """Returns the values of a tensor of any data type as they are in memory, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1, 1).view(torch.uint8).numpy().tobytes()


def tensor_digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's values."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def file_digests(paths: Iterable[Path]) -> dict[str, str]:
    """Returns the SHA-256 of files by their names, in the order of these."""
    found = {}
    for path in sorted(paths):
        with path.open("rb") as content:
            found[path.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def checkpoint_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of a checkpoint's weight files and of its `config.json`, by their names."""
    return file_digests({path for pattern in CHECKED for path in folder.glob(pattern)})


def recorded_digests(name: str) -> dict[str, str] | None:
    """Returns the digests that the record of a compressed model holds; None where there are none, as in older records.

    Raises:
        SubFitError: if the record cannot be read.
    """
    path = Path(name) / RECORD
    if not path.is_file():
        return None
    found = read_json(path).get("files")
    if found is not None and not isinstance(found, dict):
        raise SubFitError(f"{path}: files must be a mapping of names to SHA-256")
    return found


def check_digests(name: str) -> None:
    """Checks that the files of a compressed model are those that were written.

    Raises:
        SubFitError: if one was changed, is missing or is new, or the record holds no digests.
    """
    expected = recorded_digests(name)
    if expected is None:
        raise SubFitError(f"the model {name} cannot be verified: it has no {RECORD} with the digests of its files")
    found = checkpoint_digests(Path(name))
    for file in sorted({*expected, *found}):
        if expected.get(file) != found.get(file):
            what = "is missing" if file not in found else "is new" if file not in expected else "was changed"
            raise SubFitError(f"the model {name} is not what was written: {file} {what} since; its SHA-256 is in {RECORD}")
