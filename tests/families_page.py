"""The page docs/families.md, from what is expected of each model type."""

import json
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).with_name("families.json")
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
PLURALS = {"attention": "Attentions", "mixer": "mixers", "ffn": "FeedForwards"}
TEXT = """# Model types

After this page you can say which models SubFit compresses, and why it refuses others.

SubFit has no list of models. It looks at what the modules of a decoder layer read and give, and takes as a submodule what
is added to the residual stream. Here is what it makes of every causal model type of transformers {version}, tried on tiny
models with random weights: {compressed} are compressed, and {refused} are refused with the reason.

A mixer that is no Attention (a state-space model, a convolution, linear attention) is a submodule of a kind of its own,
such as `mixer.3`. Mixers have a budget of their own, as Attentions and FeedForwards have, and the bypass of
`--attention_bypass` takes their place. What a layer multiplies a submodule's output by, such as Granite's
`residual_multiplier`, is found, and scorers and fits see what is really added. A submodule that gives values to later
layers, such as keys that these share, is kept, and a line says so. What a layer gets from the tokens beside the stream,
as the inputs for each layer of Gemma 4 E2B and E4B, it gets while bypasses are fitted, too.

Of a model that reads images or sounds, too, the decoder that reads text is compressed, and all else stays as it is.

This page is generated: `make families` runs the table anew and compares, and with `UPDATE=1` it writes the page.

## Compressed

Each model has about four layers. In each of these ways, which are the cells of the table, it does what its dense model does:

{cells}

*But* names the cells in which it does not, and why. In the cells *static cache* and *left padding* it often says that the
dense model does not run that way, either.

| model type | submodules | but |
|---|---|---|
{rows}

## Refused

Before any work, with this message and exit code 2. Of those that *cannot load* begins, transformers itself does not make a
model:

| model type | message |
|---|---|
{refusals}
"""
CELLS = {
    "nothing in place is zero": "nothing in the place of a submodule is the same as zero in the place of its output;",
    "first and last layer, saved": "these are replaced, fitted in one shot, saved, and read with the package and without;",
    "cached decoding": "that model decodes with a cache what it decodes without, beyond sliding windows;",
    "static cache": "and with a static cache;",
    "left padding": "and with padding on the left;",
    "all Attentions": "all Attentions are replaced, fitted in sequence, and their slots in the cache are empty;",
    "all mixers": "all mixers that are no Attentions are, and their states are empty;",
    "all FeedForwards": "all FeedForwards are;",
    "everything, saved": "all submodules are, and the model is saved and read again;",
    "bfloat16": "in bfloat16, the same submodules are found and fitted.",
}


def page(expected: dict[str, Any]) -> str:
    """Returns the page."""
    types = expected["types"]
    compressed = {name: found for name, found in types.items() if "submodules" in found}
    refused = {name: found["refused"] for name, found in types.items() if "refused" in found}
    return TEXT.format(
        version=expected["transformers"],
        compressed=len(compressed),
        refused=len(refused),
        cells="\n".join(f"- *{name}*: {text}" for name, text in CELLS.items()),
        rows="\n".join(
            f"| `{name}` | {_counted(found['submodules'])} | {_but(found['cells'])} |" for name, found in compressed.items()
        ),
        refusals="\n".join(f"| `{name}` | {_cell(message)} |" for name, message in refused.items()),
    )


def _counted(submodules: dict[str, int]) -> str:
    return ", ".join(f"{count} {PLURALS[kind]}" for kind, count in submodules.items())


def _but(cells: dict[str, str]) -> str:
    return "; ".join(f"*{cell}*: {_cell(found)}" for cell, found in cells.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(expected: dict[str, Any]) -> None:
    """Writes what is expected, and the page."""
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
    PAGE.write_text(page(expected))
