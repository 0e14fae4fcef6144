"""The source code of plug-ins' module classes for a checkpoint: the classes, and what they need of their file.

A checkpoint opens where neither the plug-in nor `subfit` is installed. A plug-in file as a whole imports `subfit`; a module
class in it needs only what its code names: imports, constants, functions, base classes, and what these name in turn.
"""

import ast
import builtins
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from subfit.errors import SubFitError
from subfit.model import modeling_subfit
from subfit.model.source_names import SourceNames

OURS = modeling_subfit.__name__
LIBRARIES = ("torch", "transformers")  # installed wherever a checkpoint is opened


def portable_source(modules: Iterable[nn.Module]) -> str:
    """Returns the code to append to `modeling_subfit.py` so that it defines the classes of these modules; "" if it does.

    Args:
        modules: fitted bypasses; the modules in them count, too.

    Raises:
        SubFitError: if a class cannot travel with a checkpoint, or could not be built again there.
    """
    modules = [modeling_subfit.token_map(module) for module in modules]  # kept heads are of the dense model's own classes
    every = {id(module): module for root in modules for module in root.modules()}.values()
    examples = {type(module): module for module in every if _is_foreign(type(module))}
    statements = _statements(sorted(examples, key=lambda found: (found.__module__, found.__qualname__)))
    source = "".join(f"\n\n{statement}\n" for statement in statements)
    described = {type(m): m for root in modules for m in _described(root) if type(m) in examples}
    _check_build(source, described)
    return source


def _is_foreign(found: type[nn.Module]) -> bool:
    """Whether a module's class is neither one of torch.nn nor of modeling_subfit."""
    return getattr(nn, found.__name__, None) is not found and vars(modeling_subfit).get(found.__name__) is not found


def _described(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that `modeling_subfit.describe` looks at: the children of containers, as their insides are their own."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _described(child)
    elif isinstance(module, modeling_subfit.Shared):
        yield from _described(module.owner[0])
    yield module


def _statements(classes: list[type]) -> list[str]:
    """The statements that define some classes, each once, in an order in which they can be run."""
    taken = SourceNames(Path(modeling_subfit.__file__ or ""))
    found: dict[str, str] = {}  # by the name that each defines
    for wanted in classes:
        if wanted.__module__.partition(".")[0] in LIBRARIES:
            pieces = {wanted.__name__: f"from {wanted.__module__} import {wanted.__name__}"}
        else:
            pieces = _pieces(wanted)
        for name, statement in pieces.items():
            if name in taken.statements and taken.text(name) != statement:
                raise _refused(
                    wanted, f"it needs {name!r}, a name that modeling_subfit.py has for something else; rename it"
                )
            if found.get(name, statement) != statement:
                raise _refused(wanted, f"it needs {name!r}, and so does another plug-in, for something else; rename it")
            if name not in taken.statements:
                found[name] = statement
    return list(dict.fromkeys(found.values()))


def _pieces(wanted: type) -> dict[str, str]:
    """The top-level statements of a class's file that it needs, itself included, by the names that they define."""
    file = getattr(sys.modules.get(wanted.__module__), "__file__", None)
    if "<locals>" in wanted.__qualname__ or file is None or not Path(file).is_file():
        raise _refused(wanted, "it must be defined at the top level of a .py file")
    names = SourceNames(Path(file))
    pieces: dict[str, str] = {}
    for name in names.needed(wanted.__qualname__.partition(".")[0]):
        statement = names.statements[name]
        if isinstance(statement, ast.ImportFrom) and statement.module == OURS:  # it is there, maybe by another name
            if names.imported(name) != name:
                pieces[name] = f"{name} = {names.imported(name)}"
            continue
        for node in ast.walk(statement):  # the imports inside functions, too
            if isinstance(node, ast.Import | ast.ImportFrom):
                _check_import(wanted, node, Path(file))
        pieces[name] = names.text(name)
    return pieces


def _check_import(wanted: type, statement: ast.Import | ast.ImportFrom, file: Path) -> None:
    """Raises SubFitError if a checkpoint cannot have an import: of `subfit`, or of a file beside the plug-in's."""
    text = ast.unparse(statement)
    relative = isinstance(statement, ast.ImportFrom) and statement.level > 0
    module = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
    package = (module or "").partition(".")[0]
    beside = (file.parent / f"{package}.py").is_file() or (file.parent / package / "__init__.py").is_file()
    if package == "subfit" or relative or beside:
        why = "is not installed where the checkpoint is opened; define what is needed in the class's own file"
        raise _refused(wanted, f"it needs `{text}`, which {why}")


def _check_build(source: str, examples: dict[type, nn.Module]) -> None:
    """Builds a module of each class anew, by the code that a checkpoint will have alone.

    Raises:
        SubFitError: if it cannot be built, or has other tensors.
    """
    if not examples:
        return
    text = Path(modeling_subfit.__file__ or "").read_text(encoding="utf-8") + source
    code: dict[str, object] = {"__name__": "modeling_subfit", "__file__": "modeling_subfit.py", "__builtins__": builtins}
    for found, example in examples.items():
        try:
            if "build" not in code:
                exec(compile(text, "modeling_subfit.py", "exec"), code)
            described = json.loads(json.dumps(modeling_subfit.describe(example, {})))  # as config.json has it
            built = code["build"](described, {})  # type: ignore[operator]
            shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (example, built)]
        except Exception as error:
            raise _refused(found, f"built from its own source alone: {type(error).__name__}: {error}") from error
        if shapes[0] != shapes[1]:
            raise _refused(found, "each argument of its constructor must be kept in an attribute of the same name")


def _refused(found: type, why: str) -> SubFitError:
    place = ""
    if "<locals>" not in found.__qualname__:
        try:
            place = f" ({inspect.getsourcefile(found)})"
        except TypeError:  # a notebook's
            place = ""
    return SubFitError(f"the module {found.__qualname__}{place} cannot be saved with a checkpoint: {why}")
