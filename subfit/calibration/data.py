"""Calibration and evaluation tokens: sampled from the model itself, from local text, or from a data set of the hub."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from subfit.errors import SubFitError

SAMPLING_BATCH = 64
BLOCK = 1 << 22  # characters of a text file that are read and tokenised at once
EVALUATION_SEED = 1 << 32  # added to the seed, so that sampled evaluation windows are never those of a calibration


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
    """

    source: str | None = None
    path: str | list[str] = field(default_factory=list)
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    windows: int = 64
    length: int = 512

    def __post_init__(self) -> None:
        self.path = [self.path] if isinstance(self.path, str) else self.path

    def sources(self) -> list[str]:
        """The sources that are mixed.

        Raises:
            SubFitError: if one is unknown, or what it needs is not given.
        """
        given = [name for name, value in (("text", self.path), ("hub", self.dataset)) if value]
        sources = self.source.split("+") if self.source else given or ["self"]
        for name, needs in (("text", "path"), ("hub", "dataset")):
            if name in sources and name not in given:
                raise SubFitError(f"data source {name!r} needs a {needs}")
        for name in sources:
            if name not in ("self", "text", "hub"):
                raise SubFitError(f"unknown data source {name!r}; use self, text or hub, or several joined by +")
        if self.windows < 1 or self.length < 2:
            raise SubFitError(f"{self.windows} windows of {self.length} tokens: at least 1 window of 2 tokens is needed")
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


def read_tokens(data: Data, model: Any, tokenizer: Any, seed: int, held_out: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the tokens that `data` describes, packed without padding, and others of the same sources for evaluation.

    Args:
        model: the model to sample from; used by the source `self` alone.
        tokenizer: the tokenizer of the model; its special tokens are not added to text.
        seed: seed of the sampling.
        held_out: number of further windows, disjoint from the first ones.

    Returns:
        Two tensors, (data.windows, length) and (held_out, length).

    Raises:
        SubFitError: if a file or data set cannot be read, or holds too few tokens.
    """
    sources = data.sources()
    used, kept = [], []
    for index, source in enumerate(sources):
        count, extra = (n // len(sources) + (index < n % len(sources)) for n in (data.windows, held_out))
        if source == "self":
            part = sample(model, tokenizer, count + extra, data.length, seed)
        else:
            texts, where = _files(data) if source == "text" else _hub(data)
            part = _pack(texts, tokenizer, count + extra, data.length, where)
        used.append(part[:count])
        kept.append(part[count:])
    return torch.cat(used), torch.cat(kept)


@torch.no_grad()
def sample(model: Any, tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """Samples windows from the model's own distribution, each from the begin-of-text token; (count, length).

    Data-free calibration (as LLM-QAT, arXiv 2305.17888): what the model says of its own accord covers what it knows.
    """
    first = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), None)
    if first is None:
        raise SubFitError("the tokenizer has no begin-of-text token to sample from; give a text or a data set instead")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.full((count, length), first)
    with tqdm(total=count * (length - 1), desc="sample", unit="token") as progress:
        for start in range(0, count, SAMPLING_BATCH):
            rows = tokens[start : start + SAMPLING_BATCH]
            cache = None
            for position in range(1, length):
                step = rows[:, position - 1 : position].to(device)
                output = model(step, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                probabilities = output.logits[:, -1].float().softmax(-1)
                if not probabilities.isfinite().all():
                    raise SubFitError("the model gives NaN or infinite logits; it cannot be sampled from")
                rows[:, position] = torch.multinomial(probabilities, 1, generator=generator)[:, 0].cpu()
                progress.update(len(rows))
    return tokens


def _pack(texts: Iterator[str], tokenizer: Any, count: int, length: int, where: str) -> Tensor:
    """Tokenises texts one after the other until there are enough tokens, and cuts them into windows."""
    needed, ids = count * length, list[int]()
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= needed:
            return torch.tensor(ids[:needed]).view(count, length)
    have = len(ids) // length
    raise SubFitError(f"{where} holds {len(ids)} tokens, {have} windows of {length}; {count} windows were asked for")


def _files(data: Data) -> tuple[Iterator[str], str]:
    """The texts of local files: a `.txt` file is one text, other files hold one in each row."""
    data.check_files()

    def read() -> Iterator[str]:
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
                yield from _rows(data, name, kind, data_files=name, split="train")

    return read(), " + ".join(data.path)


def _hub(data: Data) -> tuple[Iterator[str], str]:
    """The texts of a data set of the hub."""
    assert data.dataset
    return _rows(data, data.dataset, data.dataset, name=data.subset, split=data.split), f"{data.dataset} ({data.split})"


def _rows(data: Data, where: str, loader: str, **options: Any) -> Iterator[str]:
    """Yields the text column of a data set, streamed, each row with a blank line after it."""
    import datasets  # slow to import, and not needed for plain text

    try:
        rows = iter(datasets.load_dataset(loader, streaming=True, **options))
        for row in rows:
            if data.column not in row:
                raise SubFitError(f"{where} has no column {data.column!r}; it has {', '.join(row)}")
            yield f"{row[data.column]}\n\n"
    except SubFitError:
        raise
    except Exception as error:  # datasets raises errors of many libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise SubFitError(f"cannot read {where}: {type(error).__name__}: {reason}") from error
