"""Zero-shot tasks from local JSON Lines files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subfit.errors import SubFitError, missing

LAYOUTS = (  # the first key tells each from the others
    ("choices", "query", "gold"),
    ("context_options", "continuation", "gold"),
    ("context", "continuation"),
)


@dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        pairs: contexts, each with a continuation.
        gold: index of the pair whose continuation should be the likeliest; None where there is one pair, and its
            continuation should be what greedy decoding gives.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int | None


@dataclass(frozen=True)
class Task:
    """A named list of questions of one kind."""

    name: str
    items: list[Item]


def read_task(path: str, limit: int | None = None) -> Task:
    """Reads a task, which is named by its file's stem.

    Each line is an object of one of three layouts, those of MosaicML's llm-foundry:
    `query`, `choices` and `gold`, the index of the right choice; `context_options`, `continuation` and `gold`, the index
    of the context that makes the continuation the likeliest; `context` and `continuation`, which greedy decoding should
    give. There is no template: the query is the context, as it stands in the file.

    Args:
        limit: number of items, the first of the file; all if not given.

    Raises:
        SubFitError: if the file cannot be read, or a line of it is not an item.
    """
    items: list[Item] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if len(items) == limit:
                    break
                if line.strip():
                    items.append(_item(line, f"{path}:{number}"))
                    if (items[-1].gold is None) != (items[0].gold is None):
                        raise SubFitError(f"{path}:{number}: another kind of item than the first; a file is of one kind")
    except FileNotFoundError:
        raise SubFitError(f"task file {missing(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SubFitError(f"cannot read the task file {path}: {reason}") from error
    if not items:
        raise SubFitError(f"the task file {path} has no items")
    return Task(Path(path).stem, items)


def joined(context: str, continuation: str) -> str:
    """Returns the continuation as it follows the context: after one space, unless the context ends in white space."""
    return continuation if context[-1].isspace() else f" {continuation}"


def _item(line: str, where: str) -> Item:
    """The item of a line of a file."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SubFitError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    layout = next((keys for keys in LAYOUTS if isinstance(row, dict) and keys[0] in row), None)
    if layout is None:
        known = "; ".join(", ".join(keys) for keys in LAYOUTS)
        raise SubFitError(f"{where}: unknown layout; an item is an object with one of these sets of keys: {known}")
    for key in layout:
        if key not in row:
            raise SubFitError(f"{where}: {key!r} is missing; an item with {layout[0]!r} needs {', '.join(layout)}")
    if "choices" in layout:
        context = _text(row, "query", where)
        pairs = tuple((context, choice) for choice in _texts(row, "choices", where))
    else:
        contexts = _texts(row, "context_options", where) if "gold" in layout else [_text(row, "context", where)]
        pairs = tuple((context, _text(row, "continuation", where)) for context in contexts)
    if "gold" not in layout:
        return Item(pairs, None)
    gold = row["gold"]
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(pairs):
        raise SubFitError(f"{where}: gold is {gold!r}; it must be an index from 0 to {len(pairs) - 1}")
    return Item(pairs, gold)


def _texts(row: dict[str, Any], key: str, where: str) -> list[str]:
    found = row[key]
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(text, str) and text.strip() for text in found):
        raise SubFitError(f"{where}: {key!r} must be a list of at least two texts, none of them blank")
    return found


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str) or not row[key].strip():
        raise SubFitError(f"{where}: {key!r} must be a text, and not blank")
    return row[key]
