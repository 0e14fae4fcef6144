"""The options of calibration and evaluation tokens; `calibration.data` reads them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from subfit.errors import SubFitError

SOURCES = ("self", "text", "hub")
LARGEST_SEED = (1 << 31) - 1  # of a calibration; those of evaluations are larger, within the 32 bits that torch uses


@dataclass
class Data:
    """Where tokens come from.

    Attributes:
        source: `self` (sampled from the model, no data needed), `text` (files) or `hub` (a data set); several joined by
            `+` share the windows equally. If not given: text where there is a path, hub where there is a data set.
        path: text files: `.txt`, or `.jsonl` and `.parquet` with a text column.
        dataset: name of a data set of the hub.
        subset: name of the data set's configuration.
        split: split of the data set.
        column: name of the text column.
        windows: number of windows.
        length: tokens in a window.
        sampling: which windows of a text: the `first` ones, or `random` ones, drawn by the run's seed. Of files, all of the
            text is read, and each of its windows is equally likely; of a data set, which may be too large for that, the
            rows are shuffled in a buffer of 10,000.

    Raises:
        SubFitError: if a source is unknown, or what it needs is not given, or there are too few windows or tokens.
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

    FEWEST = 1  # windows; not an option

    def __post_init__(self) -> None:
        self.path = [self.path] if isinstance(self.path, str) else self.path
        if self.windows < self.FEWEST or self.length < 2:
            fewest = f"at least {self.FEWEST} window of 2 tokens is needed"
            raise SubFitError(f"{self.windows} windows of {self.length} tokens: {fewest}")
        if self.sampling not in ("first", "random"):
            raise SubFitError(f"unknown sampling {self.sampling!r}; use first or random")
        self.sources()

    def sources(self) -> list[str]:
        """Returns the sources that are mixed."""
        given = [name for name, value in (("text", self.path), ("hub", self.dataset)) if value]
        sources = self.source.split("+") if self.source else given or ["self"]
        for name in sources:
            if name not in SOURCES:
                raise SubFitError(f"unknown data source {name!r}; use self, text or hub, or several joined by +")
        for name, needs in (("text", "path"), ("hub", "dataset")):
            if name in sources and name not in given:
                raise SubFitError(f"data source {name!r} needs a {needs}")
        return sources

    def check_files(self) -> None:
        """Raises SubFitError if a text file is missing, or of a type that is not known."""
        for name in self.path:
            if not Path(name).is_file():
                raise SubFitError(f"text file {name} does not exist")
            if Path(name).suffix not in (".txt", ".jsonl", ".parquet"):
                raise SubFitError(f"text file {name}: its type is not known; use .txt, .jsonl or .parquet")


@dataclass
class EvaluationData(Data):
    """Where the tokens to evaluate on come from; if no source is given, held out from those of the calibration."""

    windows: int = 16

    FEWEST = 0


def evaluation_seed(seed: int, text: str = "") -> int:
    """Returns the seed for sampling an evaluation text: another one than that of any calibration, and of any other text.

    Args:
        seed: the run's.
        text: the text's name, where there are several.
    """
    number = int.from_bytes(hashlib.sha256(f"evaluation {seed} {text}".encode()).digest()[:4])
    return number | LARGEST_SEED + 1
