"""Calibration tokens of text: local files and data sets of the hub, read and tokenised as a stream."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from subfit.calibration.settings import Data
from subfit.errors import SubFitError

BLOCK = 1 << 22  # characters of a text file that are read and tokenised at once
SHUFFLED_ROWS = 10_000  # of a data set of the hub, held at once where its rows are drawn at random


def text_windows(texts: Iterator[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Tokenises texts one after the other and yields their tokens in windows; the last is shorter, and may be empty."""
    ids = list[int]()
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        complete = len(ids) - len(ids) % length
        for start in range(0, complete, length):
            yield ids[start : start + length]
        del ids[:complete]
    yield ids


def first_windows(windows: Iterator[list[int]], count: int, length: int, where: str) -> Tensor:
    """The first windows of a text, (count, length)."""
    return _stacked(list(islice(windows, count)), count, length, where)


def draw_windows(windows: Iterator[list[int]], count: int, length: int, where: str, seed: int) -> Tensor:
    """Windows drawn from all of a text without replacement, in random order, (count, length).

    No more are held than are returned. Source: Vitter, Random Sampling with a Reservoir (1985), algorithm R.
    """
    generator, drawn = random.Random(seed), list[list[int]]()
    for index, window in enumerate(windows):
        if index < count:
            drawn.append(window)
        elif len(window) == length and (place := generator.randrange(index + 1)) < count:
            drawn[place] = window
    generator.shuffle(drawn)
    return _stacked(drawn, count, length, where)


def _stacked(windows: list[list[int]], count: int, length: int, where: str) -> Tensor:
    tokens = sum(map(len, windows))
    if tokens < count * length:
        have = f"{tokens} tokens, {tokens // length} windows of {length}"
        raise SubFitError(f"{where} holds {have}; {count} windows were asked for")
    return torch.tensor(windows, dtype=torch.long).view(count, length)


def read_files(data: Data) -> Iterator[str]:
    """The texts of local files: a `.txt` file is one text, other files hold one in each row."""
    data.check_files()
    for name in data.path:
        if name.endswith(".txt"):
            try:
                with open(name, encoding="utf-8") as file:
                    while block := "".join(file.readlines(BLOCK)):
                        yield block
            except UnicodeDecodeError as error:
                raise SubFitError(f"text file {name} is not UTF-8: {error}") from error
        else:
            kind = "json" if name.endswith(".jsonl") else "parquet"
            yield from _rows(data, name, None, kind, data_files=name, split="train")


def read_hub(data: Data, seed: int) -> Iterator[str]:
    """The texts of a data set of the hub."""
    assert data.dataset
    shuffled = seed if data.sampling == "random" else None
    return _rows(data, data.dataset, shuffled, data.dataset, name=data.subset, split=data.split)


def _rows(data: Data, where: str, shuffled: int | None, loader: str, **options: Any) -> Iterator[str]:
    """Yields the text column of a data set, streamed, each row with a blank line after it.

    Args:
        shuffled: seed of the rows' order; that of the data set if None.
    """
    import datasets  # slow to import, and not needed for plain text

    try:
        rows = datasets.load_dataset(loader, streaming=True, **options)
        if shuffled is not None:
            rows = rows.shuffle(seed=shuffled, buffer_size=SHUFFLED_ROWS)
        for row in rows:
            if data.column not in row:
                raise SubFitError(f"{where} has no column {data.column!r}; it has {', '.join(row)}")
            yield f"{row[data.column]}\n\n"
    except SubFitError:
        raise
    except Exception as error:  # datasets raises errors of many libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise SubFitError(f"cannot read {where}: {type(error).__name__}: {reason}") from error
