"""Tensors kept in files: those that are too large for memory, or that later runs need."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from subfit.errors import SubFitError
from subfit.model.digests import tensor_bytes
from subfit.tracking.atomic import whole_file


class Cache:
    """Named sets of tensors in a folder, one file each, which is complete or not there.

    Args:
        folder: where; it is made if it does not exist.
        device: where tensors are loaded to.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        self._folder = Path(folder)
        self._device = device

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keeps some tensors under a name.

        Raises:
            SubFitError: if they cannot be written, as the disk is full.
        """
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path(name)) as partial:
                save_file(plain, partial, {"sha256": _digest(plain)})
        except (OSError, SafetensorError) as error:
            raise SubFitError(f"cannot keep intermediate results in {self._folder}: {error}") from error

    def get(self, name: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a name; None if there are none, or they are not what was written."""
        path = self._path(name)
        try:
            with safe_open(path, framework="pt") as file:
                expected = (file.metadata() or {}).get("sha256")
            found = load_file(path)
        except (OSError, SafetensorError):
            return None
        return {key: value.to(self._device) for key, value in found.items()} if _digest(found) == expected else None

    def load(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors of a name that were put here.

        Raises:
            SubFitError: if they are not there any more.
        """
        found = self.get(name)
        if found is None:
            raise SubFitError(f"intermediate results ({name}) in {self._folder} were removed or damaged meanwhile")
        return found

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and contents."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()
