"""The options of calibration and evaluation tokens; `calibration.data` reads them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from subfit.calibration.files import text_files
from subfit.errors import SubFitError, shown
from subfit.options.typed import check_fields

SOURCES = ("self", "text", "hub", "repeated", "given")
LARGEST_SEED = (1 << 31) - 1  # of a calibration; others are larger, within the 32 bits that torch uses


@dataclass
class Data:
    """Where tokens come from.

    Attributes:
        source: `self` (sampled from the model, no data needed), `text` (files), `hub` (a data set), `given` (text where
            there is a path, hub where there is a data set) or `repeated` (a segment of random tokens, four times in a
            window). Several are joined by `+`, with weights, as in `text:2+self:1`: equal ones if there are none. If it is
            not set: what is given, and self where nothing is.
        path: text files, or globs and folders of them: `.txt`, or `.jsonl` and `.parquet` with a column of texts or of
            conversations. Relative to the folder that the command runs in; the files of a folder and of a glob, such as
            `texts/**/*.txt`, are read in sorted order.
        dataset: name of a data set of the hub.
        subset: name of the data set's configuration.
        split: split of the data set.
        column: name of the column that is read: texts, or lists of messages with `role` and `content`, which the tokenizer's
            chat template renders; `messages` is read where there is no column `text`. Empty texts are skipped.
        windows: number of windows, no two of them equal.
        length: tokens in a window.
        sampling: which windows: the `first` ones, where later files are read only if the earlier ones are too short, or
            `random` ones, drawn by the run's seed. Of files, all of the text is then read, and each of its windows is
            equally likely; of a data set, which may be too large for that, the rows are shuffled in a buffer of 10,000.
        prompts: how windows that are sampled from the model begin, which take them in turn; if there are none, with the
            begin-of-text token.

    Raises:
        SubFitError: if a value is not of its type, a source is unknown or named twice, what it needs is not given, or there
            are too few windows or tokens.
    """

    source: str | None = None
    path: str | list[str] = field(default_factory=list)
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    windows: int = 64
    length: int = 512
    sampling: Literal["first", "random"] = "first"
    prompts: list[str] = field(default_factory=list)

    FEWEST = 1  # windows; not an option

    def __post_init__(self) -> None:
        check_fields(self)
        given = [self.path] if isinstance(self.path, str | os.PathLike) else self.path
        if not all(isinstance(name, str | os.PathLike) for name in given):
            raise SubFitError(f"path is {shown(self.path)}; it must be a path, or a list of paths")
        self.path = [os.fspath(name) for name in given]
        if self.windows < self.FEWEST or self.length < 2:
            fewest = f"at least {self.FEWEST} window of 2 tokens is needed"
            raise SubFitError(f"{self.windows} windows of {self.length} tokens: {fewest}")
        self.weights()

    def sources(self) -> list[str]:
        """Returns the sources that are mixed."""
        return list(self.weights())

    def weights(self) -> dict[str, int]:
        """Returns the sources that are mixed, and the weight of each.

        Raises:
            SubFitError: if a source is unknown, named twice or lacks what it needs, or a weight is no number above 0.
        """
        parts = list(self._parts()) or [("self", 1)]
        names = [name for name, _ in parts]
        for name in names:
            if name not in SOURCES:
                raise SubFitError(f"unknown data source {name!r}; use {', '.join(SOURCES)}, or several joined by +")
            if names.count(name) > 1:
                raise SubFitError(f"data source {self.source!r} names {name} twice, which would give the same tokens twice")
        for name, needs in (("text", "path"), ("hub", "dataset")):
            if name in names and name not in self._given():
                raise SubFitError(f"data source {name!r} needs a {needs}")
        return dict(parts)

    def _given(self) -> list[str]:
        """The sources that there are data for."""
        return [name for name, value in (("text", self.path), ("hub", self.dataset)) if value]

    def _parts(self) -> Iterator[tuple[str, int]]:
        """The names and the weights in `source`."""
        for part in (self.source or "given").split("+"):
            name, colon, weight = part.partition(":")
            if colon and not (weight.isdecimal() and len(weight) < 10 and int(weight)):
                raise SubFitError(
                    f"data source {self.source!r}: {name} has the weight {weight!r}; give a whole number from 1 to 999999999"
                )
            for each in self._given() if name == "given" else [name]:
                yield each, int(weight or 1)

    def files(self, named_in: Sequence[str] = ()) -> list[str]:
        """Returns the text files that `path` stands for, see `text_files`; none where `text` is no source."""
        return text_files(self.path, named_in) if "text" in self.sources() else []

    def check_files(self, named_in: Sequence[str] = ()) -> None:
        """Raises SubFitError if a text file is missing, or of a type that is not known.

        Args:
            named_in: the configurations or grids that name the files, for the message.
        """
        text_files(self.path, named_in)


@dataclass
class EvaluationData(Data):
    """Where the tokens to evaluate on come from; if no source is given, held out from those of the calibration."""

    windows: int = 16

    FEWEST = 0

    def is_held_out(self) -> bool:
        """Whether no source is given, so that the tokens are held out from those of the calibration."""
        return not (self.source or self.path or self.dataset)


def evaluation_seed(seed: int, text: str = "") -> int:
    """Returns the seed for sampling an evaluation text: another one than that of any calibration, and of any other text.

    Args:
        seed: the run's.
        text: the text's name, where there are several.
    """
    return _seed_of(f"evaluation {seed} {text}")


def further_seed(seed: int) -> int:
    """Returns the seed for sampling and drawing windows beside those of a seed: another one than that of any calibration."""
    return _seed_of(f"further {seed}")


def _seed_of(name: str) -> int:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    return number | LARGEST_SEED + 1
