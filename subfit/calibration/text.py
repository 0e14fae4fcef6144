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


def draw_windows(
    windows: Iterator[list[int]], count: int, length: int, where: str, seed: int, further: int = 0, further_seed: int = 0
) -> Tensor:
    """Windows drawn from all of a text without replacement, in random order, (count + further, length).

    The further ones are drawn, by a seed of their own, from those that the first draw leaves, which does not depend on them.
    No more are held than are returned.
    """
    generators = random.Random(seed), random.Random(further_seed)
    drawn, others = list[list[int]](), list[list[int]]()
    left = _draw(windows, drawn, count, length, generators[0])
    for _ in _draw(left, others, further, length, generators[1]):
        pass
    for generator, found in zip(generators, (drawn, others), strict=True):
        generator.shuffle(found)
    return _stacked([*drawn, *others], count + further, length, where)


def _draw(
    windows: Iterator[list[int]], drawn: list[list[int]], count: int, length: int, generator: random.Random
) -> Iterator[list[int]]:
    """Draws windows of full length without replacement, once it is gone through; yields those that are not drawn.

    Source: Vitter, Random Sampling with a Reservoir (1985), algorithm R.
    """
    for index, window in enumerate(windows):
        if index < count:
            drawn.append(window)
            continue
        if len(window) == length and (place := generator.randrange(index + 1)) < count:
            drawn[place], window = window, drawn[place]
        yield window


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
