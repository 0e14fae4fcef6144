"""The names that a Python file defines, and what each needs of the others; read from its source, without running it."""

import ast
import symtable
from pathlib import Path


class SourceNames:
    """The names that a Python file defines at its top level.

    Attributes:
        statements: by name, the statement that defines it; of several, the last.
    """

    def __init__(self, file: Path):
        self._source = file.read_text(encoding="utf-8")
        tree = ast.parse(self._source)
        self._places = {id(statement): place for place, statement in enumerate(tree.body)}
        self.statements = {name: statement for statement in tree.body for name in _defined(statement)}

    def needed(self, name: str) -> list[str]:
        """Returns a name of the file and those that its statement needs, in the order of the file."""
        found, waiting = set[str](), [name]
        while waiting:
            current = waiting.pop()
            if current not in self.statements or current in found:
                continue
            found.add(current)
            waiting += _globals(symtable.symtable(ast.unparse(self.statements[current]), "", "exec"))
        return sorted(found, key=lambda each: self._places[id(self.statements[each])])

    def imported(self, name: str) -> str:
        """Returns what a name is called where it is imported from."""
        return next(alias.name for alias in _aliases(self.statements[name]) if (alias.asname or alias.name) == name)

    def text(self, name: str) -> str:
        """Returns the source of the statement that defines a name; of an import, what concerns this name."""
        statement = self.statements[name]
        if isinstance(statement, ast.Import | ast.ImportFrom):
            kept = [alias for alias in statement.names if _bound(alias) == name]
            if isinstance(statement, ast.ImportFrom):
                return ast.unparse(ast.ImportFrom(statement.module, kept, statement.level))
            return ast.unparse(ast.Import(kept))
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        return "\n".join(self._source.splitlines()[first - 1 : statement.end_lineno])


def _globals(table: symtable.SymbolTable) -> list[str]:
    """The names that code takes from its module."""
    top = table.get_type() == "module"
    own = [s.get_name() for s in table.get_symbols() if (s.is_referenced() if top else s.is_global())]
    return [*own, *(name for inner in table.get_children() for name in _globals(inner))]


def _aliases(statement: ast.stmt) -> list[ast.alias]:
    """Returns what an import imports; of another statement, nothing."""
    return statement.names if isinstance(statement, ast.Import | ast.ImportFrom) else []


def _bound(alias: ast.alias) -> str:
    """The name that an import defines."""
    return alias.asname or alias.name.partition(".")[0]


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement defines, those inside an `if` or a `try` included."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return [statement.name]
    if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        return []
    found = [_bound(alias) for node in ast.walk(statement) for alias in _aliases(node)]  # type: ignore[arg-type]
    inner = [node for node in ast.walk(statement) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    stored = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return [*found, *(node.name for node in inner), *stored]
