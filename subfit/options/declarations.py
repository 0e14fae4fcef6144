"""Reads what source files declare without importing them, so that help and lists do not wait for torch."""

import ast
import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor, or a field of a dataclass: name, annotation and default as they are written."""

    name: str
    annotation: str | None = None
    default: str | None = None


@dataclass(frozen=True)
class Class:
    """A class as its source declares it; its arguments are its own, without those of the classes that it extends."""

    name: str
    bases: list[str]
    documentation: str
    arguments: list[Argument]
    is_dataclass: bool = False


@dataclass(frozen=True)
class SourceFile:
    """The classes of a source file by their names, and from where each imported name comes: (module, name)."""

    classes: dict[str, Class] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)  # that are imported when the file is


@cache
def read(path: Path) -> SourceFile:
    """Returns what a source file declares.

    Raises:
        OSError, SyntaxError, ValueError: if it cannot be read, or is not Python.
    """
    tree = ast.parse(path.read_bytes(), str(path))
    source = SourceFile({node.name: _class(node) for node in tree.body if isinstance(node, ast.ClassDef)})
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            source.imports.update({name.asname or name.name: (node.module, name.name) for name in node.names})
    for node in tree.body:
        if isinstance(node, ast.Import):
            source.modules.extend(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            source.modules.append(node.module)
    return source


def file_of(module: str) -> Path | None:
    """Returns the source file of a module, if there is one; only the packages that it is in are imported."""
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found and found.origin and found.origin.endswith(".py") else None


def missing_import(path: Path) -> str | None:
    """Returns a module that a source file imports and that is not installed, if there is one."""
    for module in read(path).modules:
        name = module if module.startswith("subfit.") else module.partition(".")[0]
        try:
            if find_spec(name) is None:
                return name
        except (ImportError, ValueError):
            return name
    return None


def papers(documentation: str) -> list[str]:
    """Returns the arXiv numbers in a documentation, each once."""
    return list(dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", documentation)))


def first_paragraph(documentation: str) -> str:
    """Returns the first paragraph of a documentation as one line."""
    return " ".join(documentation.partition("\n\n")[0].split())


def documented(documentation: str, section: str = "Attributes") -> dict[str, str]:
    """Returns what the section of a documentation says of each name, as one line each."""
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, text = documentation.partition(f"{section}:\n")
    for line in text.splitlines():
        if line and not line.startswith(" "):
            break
        entry = re.fullmatch(r"    (\w[\w, ]*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _class(node: ast.ClassDef) -> Class:
    bases = [ast.unparse(base) for base in node.bases]
    made = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    start = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    arguments = (
        [_field(n) for n in node.body if isinstance(n, ast.AnnAssign)] if made else _arguments(start) if start else []
    )
    return Class(node.name, bases, inspect.cleandoc(ast.get_docstring(node) or ""), arguments, made)


def _field(node: ast.AnnAssign) -> Argument:
    return Argument(ast.unparse(node.target), ast.unparse(node.annotation), ast.unparse(node.value) if node.value else None)


def _arguments(node: ast.FunctionDef) -> list[Argument]:
    """The arguments of a method but its first."""
    positional = [*node.args.posonlyargs, *node.args.args]
    without = len(positional) - len(node.args.defaults)
    pairs = list(zip(positional, [None] * without + list(node.args.defaults), strict=True))[1:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [
        Argument(a.arg, ast.unparse(a.annotation) if a.annotation else None, ast.unparse(d) if d else None) for a, d in pairs
    ]
