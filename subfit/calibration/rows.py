"""Rows of data sets, local or of the hub, as texts; a row that holds a conversation is rendered as the model expects it."""

import glob
import json
from collections.abc import Iterator, Mapping
from typing import Any

from subfit.calibration.files import opened, suffix_of
from subfit.calibration.settings import Data
from subfit.errors import SubFitError, shown
from subfit.model.hub_access import check_reachable

SHUFFLED_ROWS = 10_000  # of a data set of the hub, held at once where its rows are drawn at random
SEPARATOR = "\n\n"  # after the text of a row; a conversation ends as its template says
CHATS = "messages"  # the column that is read where there is no column `text` and no other was asked for

Row = tuple[str, Mapping[str, Any]]  # where it is, for messages, and its columns


def rows_of_file(name: str) -> Iterator[Row]:
    """Yields the rows of a `.jsonl` or `.parquet` file.

    Raises:
        SubFitError: if the file cannot be read.
    """
    if suffix_of(name) == ".jsonl":
        yield from _json_lines(name)
    else:
        for number, row in enumerate(_streamed(name, "parquet", None, data_files=glob.escape(name), split="train"), 1):
            yield f"{name}, row {number}", row


def rows_of_hub(data: Data, seed: int) -> Iterator[Row]:
    """Yields the rows of a data set of the hub, in the order of `seed` if `data.sampling` is `random`.

    Raises:
        SubFitError: if it cannot be read.
    """
    assert data.dataset
    check_reachable(data.dataset, "README.md", "dataset")
    shuffled, order = (seed, "shuffled row") if data.sampling == "random" else (None, "row")
    rows = _streamed(data.dataset, data.dataset, shuffled, name=data.subset, split=data.split)
    for number, row in enumerate(rows, 1):
        yield f"{data.dataset} ({data.split}), {order} {number}", row


def texts(rows: Iterator[Row], column: str, tokenizer: Any) -> Iterator[str]:
    """Yields the text of each row, with a blank line after it, unless it is empty; or its conversation, rendered.

    Args:
        column: the column's name; where there is no column `text`, `messages` stands for it.
        tokenizer: has the chat template.

    Raises:
        SubFitError: if there is no such column, a row holds neither a text nor a conversation, or there is no chat template.
    """
    for place, row in rows:
        name = CHATS if column == Data.column and column not in row and CHATS in row else column
        if name not in row:
            raise SubFitError(f"{place}: there is no column {column!r}; there are {', '.join(map(str, row)) or 'none'}")
        value = row[name]
        if isinstance(value, str):
            if value:
                yield value + SEPARATOR
        else:
            yield _rendered(_conversation(value, f"{place}: {name}"), tokenizer, place)


def _conversation(value: Any, place: str) -> list[dict[str, Any]]:
    """The messages of a conversation, without what is null in them."""
    wanted = "it must be a text, or a conversation: a list of messages with a text as role and as content"
    if not isinstance(value, list) or not value:
        raise SubFitError(f"{place} is {shown(value)}; {wanted}")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise SubFitError(f"{place} has the message {shown(message)}; {wanted}")
    return [{key: item for key, item in message.items() if item is not None} for message in value]


def _rendered(messages: list[dict[str, Any]], tokenizer: Any, place: str) -> str:
    """A conversation as the tokenizer's chat template writes it, special tokens included."""
    if not getattr(tokenizer, "chat_template", None):
        raise SubFitError(f"{place} holds a conversation, but the model's tokenizer has no chat template; give plain text")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template is code, and may raise anything
        reason = " ".join(str(error).split())
        raise SubFitError(f"{place}: the chat template refuses the conversation: {reason}") from error


def _json_lines(name: str) -> Iterator[Row]:
    """The rows of a JSON Lines file; `datasets` would read a text that looks like a date as one."""
    with opened(name) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{name}, line {number}"
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise SubFitError(f"cannot read {place}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SubFitError(f"{place} is {shown(row)}; it must be an object")
            yield place, row


def _streamed(where: str, loader: str, shuffled: int | None, **options: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set, streamed.

    Args:
        shuffled: seed of the rows' order; that of the data set if None.
    """
    import datasets  # slow to import, and not needed for other files

    try:
        rows = datasets.load_dataset(loader, streaming=True, **options)
        yield from rows if shuffled is None else rows.shuffle(seed=shuffled, buffer_size=SHUFFLED_ROWS)
    except SubFitError:
        raise
    except Exception as error:  # datasets raises errors of many libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise SubFitError(f"cannot read {where}: {type(error).__name__}: {reason}") from error
