"""Calibration and evaluation tokens: sampled from the model itself, from local text, from a data set, or random ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from subfit.calibration.checks import check_positions, check_vocabulary, shared_windows, warn
from subfit.calibration.repeated import repeated_windows
from subfit.calibration.sampling import sample
from subfit.calibration.settings import Data, further_seed
from subfit.calibration.text import different_windows, draw_windows, first_windows, read_texts, text_windows
from subfit.errors import SubFitError
from subfit.model.digests import tensor_digest


@dataclass(frozen=True)
class RunTokens:
    """The tokens of a run, (windows, length) each.

    Attributes:
        calibration: those to score and fit on.
        evaluation: those to compare the compressed model with the dense one on; there may be none.
        training: those to fine-tune on; None if these are the calibration's.
    """

    calibration: Tensor
    evaluation: Tensor
    training: Tensor | None = None

    def seen(self) -> dict[str, Tensor]:
        """Returns the tokens that the compressed model is made from, by what they are for."""
        return {"calibration": self.calibration} | ({} if self.training is None else {"training": self.training})


def read_tokens(
    data: Data, model: Any, tokenizer: Any, seed: int, held_out: int = 0, further: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the tokens that `data` describes, packed without padding, and others of the same sources.

    No two windows of a text are equal: where it repeats itself, later ones are left out. The first two of the three tensors
    do not depend on `further`.

    Args:
        model: the model that reads the tokens; the source `self` samples from it.
        tokenizer: the tokenizer of the model; its special tokens are not added to text, except those of its chat template.
        seed: seed of sampling from the model, and of the choice of windows where `data.sampling` is `random`.
        held_out: number of windows to evaluate on, disjoint from the others, of all sources but `repeated`.
        further: number of windows to train on, disjoint from the others, of all sources.

    Returns:
        Three tensors, (data.windows, length), (held_out, length) and (further, length).

    Raises:
        SubFitError: if a file or data set cannot be read, or holds too few tokens, or the model has no positions or no
            embeddings for them.
    """
    check_positions(model, data.length)
    weights = data.weights()
    counts = _shared_out(data.windows, weights)
    extras = _shared_out(held_out, {source: weight for source, weight in weights.items() if source != "repeated"})
    others = _shared_out(further, weights)
    parts = {}
    for source in sorted(counts, key=lambda source: source == "self"):  # a text may be too short, which is known at once
        sizes = [counts[source], extras.get(source, 0), others[source]]
        if any(sizes):
            tokens = _read(data, source, sizes[0] + sizes[1], data.length, model, tokenizer, seed, sizes[2])
            parts[source] = torch.split(tokens, sizes)
    used, kept, rest = (
        torch.cat(each) for each in zip(*(parts[source] for source in counts if source in parts), strict=True)
    )
    return used, kept, rest


def _shared_out(windows: int, weights: Mapping[str, int]) -> dict[str, int]:
    """How many of the windows each source gets, by the weights; what is left over goes to the first ones.

    Raises:
        SubFitError: if there are windows, and no source to take them from.
    """
    if windows and not weights:
        raise SubFitError("evaluation: there is no text to hold out of repeated random tokens; give a source of its own")
    ends = [-(-windows * total // sum(weights.values())) for total in accumulate(weights.values())]
    return {source: end - start for source, start, end in zip(weights, [0, *ends], ends, strict=False)}


def read_stretch(data: Data, length: int, model: Any, tokenizer: Any, seed: int) -> Tensor:
    """Returns so many consecutive tokens of one text or data set, (length).

    Raises:
        SubFitError: as `read_tokens`; `data.length` is what the model reads at once.
    """
    check_positions(model, data.length)
    (source,) = data.sources()
    return _read(data, source, 1, length, model, tokenizer, seed)[0]


def describe_tokens(tokens: Tensor, data: Data | None = None, seen: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Returns what a record says of tokens: their shape and their SHA-256, by which it names them.

    Args:
        data: where they are from: adds `files`, the text files that its paths stand for, if there are any.
        seen: of tokens to evaluate on, those that the model is made from, by what they are for: adds `in_calibration` and
            `in_training`, how many windows are in these.
    """
    described: dict[str, Any] = {"shape": list(tokens.shape), "sha256": tensor_digest(tokens)}
    if data is not None and (files := data.files()):
        described["files"] = files
    return described | {f"in_{purpose}": shared_windows(tokens, others) for purpose, others in (seen or {}).items()}


def _read(
    data: Data, source: str, count: int, length: int, model: Any, tokenizer: Any, seed: int, further: int = 0
) -> Tensor:
    """Windows of one source, and further ones, on which the first do not depend, (count + further, length)."""
    if source == "self":
        draws = [(count, seed), (further, further_seed(seed))]  # apart: a window depends on its batch by rounding
        return torch.cat([sample(model, tokenizer, size, length, own, data.prompts) for size, own in draws if size])
    if source == "repeated":
        return repeated_windows(model, tokenizer, count + further, length, seed, times=4)  # twice in each half
    where = " + ".join(data.path) if source == "text" else f"{data.dataset} ({data.split})"
    files = data.files() if source == "text" else []
    unread = iter(files)
    windows = different_windows(text_windows(read_texts(data, unread, tokenizer, seed, source), tokenizer, length))
    if source == "text" and data.sampling == "random":
        tokens = draw_windows(windows, count, length, where, seed, further, further_seed(seed))
    else:
        tokens = first_windows(windows, count + further, length, where)
        if left := len(list(unread)):
            used = f"only the first {len(files) - left} of {len(files)} files are used, which have enough windows"
            warn(f"{where}: {used}; `sampling: random` draws them from all")
    check_vocabulary(model, tokens, where)
    return tokens
