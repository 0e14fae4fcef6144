"""Writes the weights of a model to files, part by part, so that they need not be in memory together."""

import json
import tempfile
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def write_shards(model: Any, parts: Iterable[dict[str, Tensor]], folder: Path) -> None:
    """Writes a model as its `save_pretrained` does, from parts of its state dict, each to a file of its own.

    Args:
        parts: together the whole; one part is written as transformers writes a state dict. One at a time is held.
    """

    def write(number: int, part: dict[str, Tensor]) -> Path:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
            place = folder if number == 1 else Path(scratch)
            model.save_pretrained(place, state_dict=dict(part))  # which it empties
            file = place / SAFE_WEIGHTS_NAME
            return file if number == 1 else file.rename(folder / f"part-{number}")

    files = list(map(write, count(1), filter(None, parts)))  # of a layer without weights there is nothing to write
    if len(files) > 1:
        _write_index(files, folder)


def _write_index(files: list[Path], folder: Path) -> None:
    """Names the files as transformers names shards, and says which weight is in which."""
    names: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, 1):
        shard = file.rename(folder / f"model-{number:05}-of-{len(files):05}.safetensors")
        with safe_open(shard, framework="pt", backend="pread") as content:
            names |= dict.fromkeys(content.keys(), shard.name)
        with shard.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        size += shard.stat().st_size - 8 - header
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
