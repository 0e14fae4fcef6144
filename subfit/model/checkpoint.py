"""Saves a compressed model as a folder that plain transformers opens; complete, or not at all."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from subfit.errors import SubFitError
from subfit.model.digests import RECORD, checkpoint_digests
from subfit.model.dtypes import as_saved, name_of, saved_dtype, saved_share
from subfit.model.folders import new_folder
from subfit.model.offloading import is_offloaded, state_parts
from subfit.model.processes import full_tensor, is_rank_zero, wait_for_all
from subfit.model.processor_files import processor_files
from subfit.model.quantised import as_they_came, write_section
from subfit.model.shards import write_shards
from subfit.model.verification import sample_logits, verify

SLACK = 1.05  # a checkpoint's size over that of its weights: tokenizer, configuration, picture


def check_space(output: str, model: Any) -> None:
    """Raises SubFitError if the disk has no room for the model's weights."""
    needed = int(SLACK * saved_share(model) * sum(p.numel() * p.element_size() for p in model.parameters()))
    parent = next(p for p in Path(output).absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise SubFitError(f"the disk of {output} has {free / 1e9:.2f} GB free; up to {needed / 1e9:.2f} GB are needed")


def save(
    model: Any,
    tokenizer: Any,
    record: dict[str, Any],
    output: str,
    draw: Callable[[dict[str, Any], Path], None],
    replace: bool = False,
) -> None:
    """Writes model, tokenizer, `compression.json`, model card and picture to a new folder; see `new_folder`.

    What was written is loaded again and compared with the model before the folder gets its name; see `verify`. Of processes
    that work together, the first writes and verifies; all must call this.

    Args:
        record: gets `files`, the SHA-256 of what decides what the checkpoint computes; see `digests.check_digests`.
        draw: writes the picture of a record's scores to an image file.
        replace: whether the folder takes the place of one that is there.

    Raises:
        SubFitError: if it cannot be written, or does not load as the same model; there is no new folder then.
    """
    logits = sample_logits(model)
    weights: Callable[[], Iterable[dict[str, Any]]]
    if is_offloaded(model):
        weights = partial(_parts_as_saved, model)  # read from the disk each time
    else:
        (whole,) = _parts_as_saved(model)
        weights = partial(list, [whole])
    wait_for_all()  # a process that leaves while its last gathering is under way aborts
    if not is_rank_zero():
        return
    with new_folder(output, replace) as folder:
        write_shards(model, map(partial(as_they_came, model), weights()), folder)
        _write_dtype(folder / "config.json", model)
        write_section(folder, model)
        verify(folder, weights(), logits, next(model.parameters()).device, model.dtype, is_offloaded(model))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for path in processor_files(model):
            shutil.copyfile(path, folder / path.name)
        draw(record, folder / "scores.png")
        (folder / "README.md").write_text(card(record, Path(output).absolute().name), encoding="utf-8")
        record["files"] = checkpoint_digests(folder)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _parts_as_saved(model: Any) -> Iterator[dict[str, Any]]:
    """The parts of a model's state dict in the types that they are saved in, see `state_parts`; one at a time is held."""
    return map(partial(_gathered, model), state_parts(model))


def _gathered(model: Any, part: dict[str, Any]) -> dict[str, Any]:
    """Weights as they are saved; of processes that share them, the first gets them."""
    weights: dict[str, Any] = {}
    for name, value in part.items():
        full = full_tensor(value)
        if is_rank_zero():
            weights |= as_saved(model, {name: full if full is value else full.cpu()})  # no device need hold them all
    return weights


def _write_dtype(config: Path, model: Any) -> None:
    """Makes a configuration say the type of the weights, where transformers has written that of the computations."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["dtype"] = name_of(saved_dtype(model))
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
