"""Which strategies a source file declares, read from its source without importing it."""

from dataclasses import dataclass
from pathlib import Path

from subfit.options import declarations
from subfit.options.declarations import Class, SourceFile


@dataclass(frozen=True)
class Entry:
    """A strategy as a list shows it.

    Attributes:
        name: what it is called in options.
        declared: its class as the source has it, if the source is there.
        problem: why it cannot be used, if that is seen without importing it.
    """

    name: str
    declared: Class | None = None
    problem: str | None = None


def entries_of(path: Path, interface: str, name: str, class_name: str | None = None) -> list[Entry]:
    """Returns the strategies that a file declares: by `name` if there is one, by `name:Class` if there are several.

    Args:
        path: the file.
        interface: the dotted path of the class that strategies extend.
        name: what the file, or the one class of interest, is called.
        class_name: the class of interest; all that extend the interface, if not given.
    """
    try:
        if class_name is None:
            found = declared_strategies(path, interface)
        else:
            found = [one for one in declarations.read(path).classes.values() if one.name == class_name]
        missing = declarations.missing_import(path)
    except (OSError, SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        return [Entry(name, problem=f"cannot be imported: {type(error).__name__}: {error}{line}")]
    problem = missing and f"cannot be imported: there is no module {missing!r}"
    return [Entry(name if len(found) == 1 else f"{name}:{one.name}", one, problem) for one in found]


def declared_strategies(path: Path, interface: str) -> list[Class]:
    """Returns the classes of a file that extend an interface, but those whose names begin with an underscore."""
    source = declarations.read(path)
    return [found for name, found in source.classes.items() if name[0] != "_" and _extends(source, "", name, interface)]


def _extends(source: SourceFile, module: str, name: str, interface: str) -> bool:
    """Whether what is called `name` in a source file is the interface, or extends it."""
    if f"{module}.{name}" == interface:
        return True
    if name in source.classes:
        return any(_extends(source, module, base, interface) for base in source.classes[name].bases)
    before, _, attribute = name.rpartition(".")
    if before:  # module.Class
        origin = ".".join(source.imports.get(before, (before,)))
        attribute = name.rpartition(".")[2]
    elif name in source.imports:
        origin, attribute = source.imports[name]
    else:
        return False
    if "." in origin and not origin.startswith("subfit."):
        return False  # to look for it would import the package that it is in
    file = declarations.file_of(origin)
    return file is not None and _extends(declarations.read(file), origin, attribute, interface)
