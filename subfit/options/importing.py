"""Imports Python files that the user names, such as plug-ins and losses, each as a module of its own."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from subfit.errors import SubFitError, missing

PREFIX = "subfit_plugin_"  # begins the module name of such a file


def module_of(path: Path) -> ModuleType:
    """Imports a file, once, as a module that is named by its whole path.

    Raises:
        SubFitError: if there is no such file.
    """
    whole = path.resolve()
    if not whole.is_file():
        raise SubFitError(f"plug-in file {missing(path)}")
    name = f"{PREFIX}{whole.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"
    return sys.modules.get(name) or import_file(whole, name)


def import_file(path: Path, name: str) -> ModuleType:
    """Runs a Python file as the module `name`, which is in `sys.modules` from then on, unless it fails."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
