"""Calibration tokens of text: local files and data sets of the hub, read and tokenised as a stream."""

import hashlib
import random
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from subfit.calibration.files import opened, suffix_of
from subfit.calibration.rows import rows_of_file, rows_of_hub, texts
from subfit.calibration.settings import Data
from subfit.errors import SubFitError

BLOCK = 1 << 22  # characters of a text file that are read and tokenised at once


def read_texts(data: Data, files: Iterable[str], tokenizer: Any, seed: int, source: str) -> Iterator[str]:
    """Yields the texts of `text` or `hub`: of a `.txt` file the whole, else one of each row, see `rows.texts`.

    Args:
        files: what `data.path` stands for; each is taken when it is read.
    """
    if source == "hub":
        yield from texts(rows_of_hub(data, seed), data.column, tokenizer)
        return
    for name in files:
        if suffix_of(name) == ".txt":
            yield from _blocks(name)
        else:
            yield from texts(rows_of_file(name), data.column, tokenizer)


def text_windows(found: Iterator[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Tokenises texts one after the other and yields their tokens in windows; the last is shorter, and may be empty."""
    ids = list[int]()
    for text in found:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        complete = len(ids) - len(ids) % length
        for start in range(0, complete, length):
            yield ids[start : start + length]
        del ids[:complete]
    yield ids


def different_windows(windows: Iterator[list[int]]) -> Iterator[list[int]]:
    """Yields each window once, so that none is both calibrated and evaluated on where a text repeats itself."""
    seen = set[bytes]()
    for window in windows:
        digest = hashlib.sha256(array("q", window).tobytes()).digest()[:16]
        if digest not in seen:
            seen.add(digest)
            yield window


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
        have = f"{tokens} tokens, {tokens // length} windows of {length} (equal ones once)"
        raise SubFitError(f"{where} holds {have}; {count} windows were asked for")
    return torch.tensor(windows, dtype=torch.long).view(count, length)


def _blocks(name: str) -> Iterator[str]:
    """The text of a `.txt` file, some lines at a time."""
    with opened(name) as file:
        while block := "".join(file.readlines(BLOCK)):
            yield block
