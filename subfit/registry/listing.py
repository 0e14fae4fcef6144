"""Lists the strategies from their sources; only one that is asked for by name is imported."""

import inspect
from pathlib import Path
from typing import Any

from subfit.errors import SubFitError
from subfit.options.declarations import Class, documented, first_paragraph, papers, read
from subfit.registry.declared import Entry
from subfit.registry.finding import INTERFACES, entries, find


def list_strategies(kind: str | None = None, name: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Returns what is known of every strategy, by kind.

    Each has a `name`, a one-line `description`, which says so if it cannot be imported, the arXiv numbers of its `papers`,
    its `options` (`name`, `type` and `default` as they are written, `description`) and its whole `documentation`.

    Args:
        kind: "scorers", "selectors" or "bypasses"; all three if not given.
        name: the name of one strategy of this kind.

    Raises:
        SubFitError: if there is no such kind or strategy.
    """
    if kind is not None and kind not in INTERFACES:
        raise SubFitError(f"unknown kind of strategy {kind!r}; use {', '.join(INTERFACES)}")
    if kind is not None and name is not None:
        found = find(kind, name)
        return {kind: [_describe(Entry(name, read(Path(inspect.getfile(found))).classes.get(found.__name__)))]}
    return {k: [_describe(entry) for entry in entries(k)] for k in INTERFACES if kind in (None, k)}


def _describe(entry: Entry) -> dict[str, Any]:
    found = entry.declared
    documentation = found.documentation if found else ""
    return {
        "name": entry.name,
        "description": entry.problem or first_paragraph(documentation),
        "papers": papers(documentation),
        "options": _options(found) if found else [],
        "documentation": documentation,
    }


def _options(found: Class) -> list[dict[str, str | None]]:
    texts = documented(found.documentation, "Args")
    return [
        {
            "name": argument.name,
            "type": argument.annotation,
            "default": argument.default,
            "description": texts.get(argument.name),
        }
        for argument in found.arguments
    ]
