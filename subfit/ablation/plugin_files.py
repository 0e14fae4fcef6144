"""The files that a strategy's results depend on."""

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from subfit.strategy import Strategy

ENGINE = ("abc", "builtins", "subfit", "torch", "torchmetrics", "typing")  # whose classes are no plug-ins
OURS = "subfit.strategies."


def files_of(value: Any) -> set[Path]:
    """Returns the files that a strategy, or what holds strategies, depends on.

    These are the sources of its class and of that class's bases, the files beside them that they import, and the files that
    its arguments name; and the same of every strategy among its arguments, at any depth.
    """
    if isinstance(value, Strategy):
        return {*_sources(type(value)), *files_of(value.arguments())}
    if isinstance(value, dict):
        return {file for item in value.values() for file in files_of(item)}
    if isinstance(value, list | tuple):
        return {file for item in value for file in files_of(item)}
    return {Path(value).resolve()} if isinstance(value, str | Path) and Path(value).is_file() else set()


def _sources(found: type) -> set[Path]:
    sources = set[Path]()
    for base in found.__mro__:
        if base.__module__.startswith(OURS) or base.__module__.partition(".")[0] not in ENGINE:
            file = inspect.getsourcefile(base)
            sources |= _with_imports(Path(file).resolve(), set()) if file else set()
    return sources


def _with_imports(file: Path, seen: set[Path]) -> set[Path]:
    """A source file and, recursively, those that it imports from its own folder or package; added to `seen`."""
    if file not in seen:
        seen.add(file)
        for name in _imports(file.read_bytes()):
            for imported in _found(file, name):
                _with_imports(imported.resolve(), seen)
    return seen


@cache
def _imports(source: bytes) -> list[str]:
    """The names that code imports, with leading dots for relative ones; what is imported from a module may be one, too."""
    names = list[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [module, *(f"{module}.{a.name}" if node.module else module + a.name for a in node.names)]
    return names


def _found(file: Path, name: str) -> Iterator[Path]:
    """The source of the module `name` that `file` imports, if it is in its folder or its package."""
    if name.startswith("subfit."):
        loaded = getattr(sys.modules.get(name), "__file__", None) if name.startswith(OURS) else None
        if loaded:
            yield Path(loaded)
        return
    level = len(name) - len(name.lstrip("."))
    package = next(folder for folder in file.parents if not (folder / "__init__.py").is_file())
    bases = [file.parents[level - 1]] if level else [file.parent, package]
    parts = name.lstrip(".").replace(".", "/")
    for base in bases:
        for path in (base / f"{parts}.py", base / parts / "__init__.py"):
            if path.is_file():
                yield path
