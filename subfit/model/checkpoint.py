"""Saves a compressed model as a folder that plain transformers opens; complete, or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from subfit.errors import SubFitError
from subfit.model.dtypes import as_saved, name_of, saved_dtype, saved_share
from subfit.model.processes import full_tensor, is_rank_zero, wait_for_all
from subfit.model.verification import sample_logits, verify

SLACK = 1.05  # a checkpoint's size over that of its weights: tokenizer, configuration, picture


def check_free(output: str) -> None:
    """Raises SubFitError if `output` cannot become a new folder; to be called before any work."""
    path = Path(output)
    if path.exists() or path.is_symlink():
        raise SubFitError(f"the output folder {output} exists; give a new one, or remove it")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SubFitError(f"the output folder {output} cannot be made in {parent}: it is not a writable folder")


def check_space(output: str, model: Any) -> None:
    """Raises SubFitError if the disk has no room for the model's weights."""
    needed = int(SLACK * saved_share(model) * sum(p.numel() * p.element_size() for p in model.parameters()))
    parent = next(p for p in Path(output).absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise SubFitError(f"the disk of {output} has {free / 1e9:.2f} GB free; up to {needed / 1e9:.2f} GB are needed")


def save(
    model: Any, tokenizer: Any, record: dict[str, Any], output: str, draw: Callable[[dict[str, Any], Path], None]
) -> None:
    """Writes model, tokenizer, `compression.json`, model card and picture to a new folder; see `new_folder`.

    What was written is loaded again and compared with the model before the folder gets its name; see `verify`. Of processes
    that work together, the first writes and verifies; all must call this.

    Args:
        draw: writes the picture of a record's scores to an image file.

    Raises:
        SubFitError: if it cannot be written, or does not load as the same model; there is no folder then.
    """
    logits = sample_logits(model)
    weights: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        full = full_tensor(value)
        if is_rank_zero():
            weights |= as_saved(model, {name: full if full is value else full.cpu()})  # no device need hold them all
    wait_for_all()  # a process that leaves while its last gathering is under way aborts
    if not is_rank_zero():
        return
    with new_folder(output) as folder:
        model.save_pretrained(folder, state_dict=dict(weights))  # which it empties
        _write_dtype(folder / "config.json", model)
        verify(folder, weights, logits, next(model.parameters()).device, model.dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        draw(record, folder / "scores.png")
        (folder / "README.md").write_text(card(record, Path(output).absolute().name), encoding="utf-8")
        (folder / "compression.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _write_dtype(config: Path, model: Any) -> None:
    """Makes a configuration say the type of the weights, where transformers has written that of the computations."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["dtype"] = name_of(saved_dtype(model))
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def new_folder(output: str) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `output` once the context has ended without an error.

    Until then its name begins with a dot: a folder under the name `output` is complete, whenever the run is interrupted.

    Raises:
        SubFitError: if the folder exists by now, or the disk is full.
    """
    path = Path(output).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent) as partial:
            folder = Path(partial) / path.name
            folder.mkdir()
            yield folder
            check_free(output)
            folder.rename(path)
    except (OSError, SafetensorError) as error:
        raise SubFitError(f"cannot write {output}: {error}; nothing was left there") from error


def card(record: dict[str, Any], name: str) -> str:
    """Returns the model card of a compressed model, in Markdown."""
    size, quality = record["size"], record.get("evaluation")
    before, after = size["before"], size["after"]
    rows = [
        ("parameters", f"{before['parameters']:,}", f"{after['parameters']:,}"),
        ("KV cache, bytes per token", f"{before['kv_bytes_per_token']:,}", f"{after['kv_bytes_per_token']:,}"),
    ]
    if quality:
        rows.append(("perplexity", f"{quality['reference_perplexity']:.2f}", f"{quality['perplexity']:.2f}"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    base = record.get("configuration", {}).get("model", "the dense model")
    return f"""---
library_name: transformers
tags: [subfit, compressed]
---
# {name}

{base}, compressed with SubFit: {len(record["selected"])} submodules are replaced by small fitted bypasses.

| | dense | compressed |
|---|---|---|
{table}

Replaced: {", ".join(record["selected"]) or "nothing"}.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
```

![Scores by depth, with the replaced submodules marked](scores.png)

`compression.json` holds the full configuration, the score of every submodule and all measurements.
"""
