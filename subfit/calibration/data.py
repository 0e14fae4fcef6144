"""Calibration and evaluation tokens: sampled from the model itself, from local text, or from a data set of the hub."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from subfit.calibration.settings import Data
from subfit.errors import SubFitError
from subfit.model.digests import tensor_digest

SAMPLING_BATCH = 64
BLOCK = 1 << 22  # characters of a text file that are read and tokenised at once
SHUFFLED_ROWS = 10_000  # of a data set of the hub, held at once where its rows are drawn at random


def read_tokens(data: Data, model: Any, tokenizer: Any, seed: int, held_out: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the tokens that `data` describes, packed without padding, and others of the same sources for evaluation.

    Args:
        model: the model to sample from; used by the source `self` alone.
        tokenizer: the tokenizer of the model; its special tokens are not added to text.
        seed: seed of sampling from the model, and of the choice of windows where `data.sampling` is `random`.
        held_out: number of further windows, disjoint from the others.

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
        elif source == "text":
            windows, where = _windows(_files(data), tokenizer, data.length), " + ".join(data.path)
            if data.sampling == "random":
                part = _draw(windows, count + extra, data.length, where, seed)
            else:
                part = _first(windows, count + extra, data.length, where)
        else:
            windows = _windows(_hub(data, seed), tokenizer, data.length)
            part = _first(windows, count + extra, data.length, f"{data.dataset} ({data.split})")
        used.append(part[:count])
        kept.append(part[count:])
    return torch.cat(used), torch.cat(kept)


@torch.no_grad()
def sample(model: Any, tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """Samples windows from the model's own distribution, each from the begin-of-text token; (count, length).

    Data-free calibration (as LLM-QAT, arXiv 2305.17888): the samples follow the model's own distribution.
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


def _windows(texts: Iterator[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Tokenises texts one after the other and yields their tokens in windows; the last is shorter, and may be empty."""
    ids = list[int]()
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        complete = len(ids) - len(ids) % length
        for start in range(0, complete, length):
            yield ids[start : start + length]
        del ids[:complete]
    yield ids


def _first(windows: Iterator[list[int]], count: int, length: int, where: str) -> Tensor:
    """The first windows of a text, (count, length)."""
    return _stacked(list(islice(windows, count)), count, length, where)


def _draw(windows: Iterator[list[int]], count: int, length: int, where: str, seed: int) -> Tensor:
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


def _files(data: Data) -> Iterator[str]:
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


def _hub(data: Data, seed: int) -> Iterator[str]:
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


def describe_tokens(tokens: Tensor) -> dict[str, Any]:
    """Returns the shape and the SHA-256 of tokens, by which a record names them."""
    return {"shape": list(tokens.shape), "sha256": tensor_digest(tokens)}
