"""Finds strategies by name: nothing is registered anywhere, a file in `strategies/` is enough.

A name is one of: a file's name in `strategies/<kind>/`, the dotted path of a class, a `.py` file (with `:Class` where it
holds several), or the name of an installed package's entry point in the group `subfit.<kind>`. A plug-in file that was
added (`--plugins`) is known by its own name, without `.py`, too.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
import typing
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from subfit.bypass import Substitute
from subfit.errors import SubFitError, where
from subfit.scorer import Scorer
from subfit.selector import Selector

INTERFACES: dict[str, type] = {"scorers": Scorer, "selectors": Selector, "bypasses": Substitute}
PLUGIN = "subfit_plugin_"  # begins the module name of a plug-in file
OPTIONS = {"scorer": "scorers", "selector": "selectors", "attention_bypass": "bypasses", "ffn_bypass": "bypasses"}


_plugins: dict[str, Path] = {}  # files that were added, by their names


def add_plugin(path: str) -> None:
    """Makes the strategies of a `.py` file known by the file's name, and, where it holds several, `name:Class`.

    Raises:
        SubFitError: if it cannot be imported, or holds no strategy.
    """
    module = _imported(f"plug-in {path}", lambda: _module_from(Path(path)))
    if not any(_defined(kind, module) for kind in INTERFACES):
        raise SubFitError(f"plug-in file {path} defines no {', '.join(base.__name__ for base in INTERFACES.values())}")
    _plugins[Path(path).stem] = Path(path).resolve()


def names(kind: str) -> list[str]:
    """Returns the names of all strategies of a kind ("scorers", "selectors" or "bypasses"), without importing them."""
    folders = [str(Path(path) / kind) for path in import_module("subfit.strategies").__path__]
    own = [module.name for module in pkgutil.iter_modules(folders)]
    added = [name for name, path in _plugins.items() if _defined(kind, _module_from(path))]
    return sorted({*own, *added, *(entry.name for entry in _entry_points(kind))})


def find(kind: str, name: str) -> type:
    """Returns the strategy class that `name` stands for.

    Raises:
        SubFitError: if there is none, or importing it fails.
    """
    what = INTERFACES[kind].__name__.lower()
    found = _imported(f"{what} {name!r}", lambda: _find(kind, name))
    if found is not None:
        missing = ", ".join(_missing(found))
        if missing:
            raise SubFitError(f"{name}: {found.__name__} lacks the method {missing} ({where(found)})")
        return found
    close = difflib.get_close_matches(name, names(kind), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise SubFitError(f"unknown {what} {name!r}; {hint}available: {', '.join(names(kind))}")


@cache
def _entry_points(kind: str) -> EntryPoints:
    return entry_points(group=f"subfit.{kind}")


def _find(kind: str, name: str) -> type | None:
    """The strategy class that `name` stands for, None if there is none."""
    stem, _, class_name = name.partition(":")
    if stem in _plugins:
        return _class_in(kind, _module_from(_plugins[stem]), class_name)
    if stem.endswith(".py"):
        return _class_in(kind, _module_from(Path(stem)), class_name)
    if "." in name:
        module_name, _, class_name = name.rpartition(".")
        return _class_in(kind, importlib.import_module(module_name), class_name)
    for entry in _entry_points(kind):
        if entry.name == name:
            return entry.load()
    return _class_in(kind, importlib.import_module(f"subfit.strategies.{kind}.{name}"), "") if name in names(kind) else None


def _missing(found: type) -> list[str]:
    """The methods that a strategy must define, and does not."""
    return sorted(getattr(found, "__abstractmethods__", ()))


def _imported(what: str, load: Callable[[], Any]) -> Any:
    """What `load` imports; whatever the imported code raises is one line that says where."""
    try:
        return load()
    except SubFitError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "importlib" not in f.filename and f.filename != __file__), None)
        place = f" ({last.filename}:{last.lineno})" if last else ""
        if isinstance(error, SyntaxError):
            place = f" ({error.filename}:{error.lineno})"
        raise SubFitError(f"{what} cannot be imported: {type(error).__name__}: {error}{place}") from error


def class_path(kind: str, name: str) -> str:
    """Returns the importable path of the strategy class that `name` stands for."""
    found = find(kind, name)
    return f"{found.__module__}.{found.__qualname__}"


def short_name(path: str) -> str:
    """Returns the name by which any process finds the class with this importable path."""
    module, _, class_name = path.rpartition(".")
    if module.startswith("subfit.strategies."):
        return module.rpartition(".")[2]
    if module.startswith(PLUGIN):
        return f"{sys.modules[module].__file__}:{class_name}"
    return path


def make(kind: str, given: Any) -> Any:
    """Returns a strategy from an instance, a name, or a mapping with `class_path` and `init_args`.

    Raises:
        SubFitError: if the strategy is unknown or does not take these arguments.
    """
    if isinstance(given, INTERFACES[kind]):
        return given
    given = {"class_path": given} if isinstance(given, str) else given
    found = find(kind, given["class_path"])
    hints = typing.get_type_hints(vars(found).get("__init__", object))
    arguments = {name: _made(hints.get(name), value) for name, value in given.get("init_args", {}).items()}
    try:
        return found(**arguments)
    except TypeError as error:
        takes = ", ".join(str(p) for p in inspect.signature(found).parameters.values())
        place = "" if found.__module__.startswith("subfit.strategies.") else f" ({where(found)})"
        raise SubFitError(f"{given['class_path']}: {error}; it takes ({takes}){place}") from error


def _made(hint: Any, value: Any) -> Any:
    """An argument of a strategy, with what the hint says to be a strategy made from its name."""
    kinds = [kind for kind, base in INTERFACES.items() if inspect.isclass(hint) and issubclass(hint, base)]
    if kinds:
        return make(kinds[0], value)
    inner = typing.get_args(hint)
    if isinstance(value, list) and inner:
        return [_made(inner[0], item) for item in value]
    if isinstance(value, dict) and len(inner) == 2:
        return {key: _made(inner[1], item) for key, item in value.items()}
    return value


def _module_from(path: Path) -> ModuleType:
    """Imports a plug-in file, once, under a name of its own."""
    if not path.is_file():
        raise SubFitError(f"plug-in file {path} does not exist")
    name = PLUGIN + path.stem
    if name not in sys.modules or Path(sys.modules[name].__file__ or "") != path.resolve():
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _class_in(kind: str, module: ModuleType, class_name: str) -> type:
    """The named class of a module, or the one strategy of the kind that it defines."""
    base, defined = INTERFACES[kind], _defined(kind, module)
    if class_name in defined:
        return defined[class_name]
    if class_name or len(defined) != 1:
        raise SubFitError(
            f"{module.__file__} must define {'a' if class_name else 'one'} {base.__name__} {class_name}".rstrip()
            + f"; it defines {', '.join(defined) or 'none'}"
        )
    return next(iter(defined.values()))


def _defined(kind: str, module: ModuleType) -> dict[str, type]:
    """The strategies of a kind that a module defines, by the names of their classes."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, INTERFACES[kind]) and value.__module__ == module.__name__
    }
