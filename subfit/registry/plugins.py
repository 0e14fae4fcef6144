"""Imports plug-in files, each as a module of its own."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from subfit.errors import SubFitError

PREFIX = "subfit_plugin_"  # begins the module name of a plug-in file
FINDERS = (Path(__file__), Path(__file__).with_name("finding.py"))  # whose own lines say nothing of a plug-in
T = TypeVar("T")


def module_of(path: Path) -> ModuleType:
    """Imports a plug-in file, once, as a module that is named by its whole path.

    Raises:
        SubFitError: if there is no such file.
    """
    whole = path.resolve()
    if not whole.is_file():
        raise SubFitError(f"plug-in file {path} does not exist")
    name = f"{PREFIX}{whole.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, whole)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def file_of(found: type) -> str | None:
    """Returns the plug-in file that a class is from, None if it is from none."""
    return sys.modules[found.__module__].__file__ if found.__module__.startswith(PREFIX) else None


def imported(what: str, load: Callable[[], T]) -> T:
    """Returns what `load` imports; whatever the imported code raises is one line that says where."""
    try:
        return load()
    except SubFitError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
        theirs = [f for f in frames if Path(f.filename) not in FINDERS]
        place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
        if isinstance(error, SyntaxError):
            place = f" ({error.filename}:{error.lineno})"
        raise SubFitError(f"{what} cannot be imported: {type(error).__name__}: {error}{place}") from error
