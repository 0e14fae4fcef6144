"""Finds the class that a name stands for, and the name that a class has."""

import importlib
import inspect
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType

from subfit.errors import SubFitError, did_you_mean, missing, where
from subfit.options.declarations import file_of
from subfit.options.importing import module_of
from subfit.registry import plugins
from subfit.registry.declared import Entry, declared_strategies, entries_of

INTERFACES = {
    "scorers": "subfit.scorer.Scorer",
    "selectors": "subfit.selector.Selector",
    "bypasses": "subfit.bypass.Substitute",
}
WORDS = {"scorers": "scorer", "selectors": "selector", "bypasses": "bypass"}

_plugins: list[Path] = []  # files that were added


def interface(kind: str) -> type:
    """Returns the class that the strategies of a kind ("scorers", "selectors" or "bypasses") extend; imports it."""
    module, _, name = INTERFACES[kind].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def add_plugin(path: str) -> None:
    """Makes the strategies of a `.py` file known by the file's name, and, where it holds several, `name:Class`.

    Raises:
        SubFitError: if it cannot be imported, as far as its source shows, or holds no strategy.
    """
    file = Path(path)
    found = [entry for kind in INTERFACES for entry in _entries_of_plugin(kind, file)]
    for entry in found:
        if entry.problem:
            raise SubFitError(f"plug-in file {path} {entry.problem}")
    if not found:
        wanted = ", ".join(path.rpartition(".")[2] for path in INTERFACES.values())
        raise SubFitError(f"plug-in file {path} defines no {wanted}")
    if file.resolve() not in _plugins:
        _plugins.append(file.resolve())


def is_plugin(path: str) -> bool:
    """Whether a file was added."""
    return Path(path).resolve() in _plugins


def entries(kind: str) -> list[Entry]:
    """Returns all strategies of a kind by name, without importing them; helper files are none."""
    own = [entry for file in _own_files(kind) for entry in entries_of(file, INTERFACES[kind], file.stem)]
    added = [entry for path in _plugins for entry in _entries_of_plugin(kind, path)]
    installed = [entry for point in _entry_points(kind) for entry in _entries_of_package(kind, point)]
    return sorted({entry.name: entry for entry in [*own, *installed, *added]}.values(), key=lambda entry: entry.name)


def names(kind: str) -> list[str]:
    """Returns the names of all strategies of a kind, without importing them."""
    return [entry.name for entry in entries(kind)]


def find(kind: str, name: str) -> type:
    """Returns the strategy class that `name` stands for.

    Raises:
        SubFitError: if there is none, or importing it fails.
    """
    found = plugins.imported(f"{WORDS[kind]} {name!r}", lambda: _find(kind, name))
    if found is None:
        known = names(kind)
        raise SubFitError(f"unknown {WORDS[kind]} {name!r}; {did_you_mean(name, known)}available: {', '.join(known)}")
    lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
    if lacking:
        raise SubFitError(f"{name}: {found.__name__} lacks the method {lacking} ({where(found)})")
    return found


def name_of(found: type) -> str:
    """Returns the name by which any process finds a strategy class."""
    file = plugins.plugin_file_of(found)
    if file is not None:
        return f"{file}:{found.__name__}"
    package, _, stem = found.__module__.rpartition(".")
    if not package.startswith("subfit.strategies."):
        return f"{found.__module__}.{found.__qualname__}"
    beside = declared_strategies(Path(inspect.getfile(found)), INTERFACES[package.rpartition(".")[2]])
    return f"{stem}:{found.__name__}" if len(beside) > 1 else stem


@cache
def _entry_points(kind: str) -> EntryPoints:
    return entry_points(group=f"subfit.{kind}")


def _entries_of_package(kind: str, point: EntryPoint) -> list[Entry]:
    """The strategy that an installed package names; without a description if its source is not where it was installed."""
    file = file_of(point.module) if "." not in point.module else None  # a package would be imported
    if file is None and point.dist is not None:
        place = Path(str(point.dist.locate_file(point.module.replace(".", "/"))))
        file = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    found = entries_of(file, INTERFACES[kind], point.name, point.attr) if file else []
    return found or [Entry(point.name)]


def _own_files(kind: str) -> list[Path]:
    folders = importlib.import_module("subfit.strategies").__path__
    return sorted(file for folder in folders for file in (Path(folder) / kind).glob("*.py") if file.name[0] != "_")


def _entries_of_plugin(kind: str, path: Path) -> list[Entry]:
    """The strategies of a kind that a plug-in file holds; it is imported if its source alone does not show them."""
    if not path.is_file():
        raise SubFitError(f"plug-in file {missing(path)}")
    found = entries_of(path, INTERFACES[kind], path.stem)
    if not found and not any(declared_strategies(path, other) for other in INTERFACES.values()):
        found = [Entry(path.stem) for _ in _defined(kind, module_of(path))]
    return found


def _find(kind: str, name: str) -> type | None:
    """The strategy class that `name` stands for, None if there is none."""
    stem, _, class_name = name.partition(":")
    added = [path for path in _plugins if path.stem == stem and _entries_of_plugin(kind, path)]
    if len(added) > 1:
        raise SubFitError(f"{name!r} is in {' and in '.join(map(str, added))}; give the path")
    if added:
        return _class_in(kind, module_of(added[0]), class_name)
    if stem.endswith(".py"):
        return _class_in(kind, module_of(Path(stem)), class_name)
    if "." in stem:
        module_name, _, class_name = name.rpartition(".")
        return _class_in(kind, importlib.import_module(module_name), class_name)
    for point in _entry_points(kind):
        if point.name == name:
            loaded: type = point.load()
            return loaded
    if any(file.stem == stem for file in _own_files(kind)):
        return _class_in(kind, importlib.import_module(f"subfit.strategies.{kind}.{stem}"), class_name)
    return None


def _class_in(kind: str, module: ModuleType, class_name: str) -> type:
    """The named class of a module, or the one strategy of the kind that it defines."""
    defined = _defined(kind, module)
    if class_name in defined:
        return defined[class_name]
    if class_name or len(defined) != 1:
        wanted = f"{'a' if class_name else 'one'} {interface(kind).__name__} {class_name}".rstrip()
        raise SubFitError(f"{module.__file__} must define {wanted}; it defines {', '.join(defined) or 'none'}")
    return next(iter(defined.values()))


def _defined(kind: str, module: ModuleType) -> dict[str, type]:
    """The strategies of a kind that a module defines, by the names of their classes."""
    base = interface(kind)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__ and name[0] != "_"
    }
