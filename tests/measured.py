"""Checks the numbers in Markdown text against the measurements that are stored in `experiments/results`.

A paragraph or list item that states measured numbers ends with a comment that says, in their order, what each of them is:

    Low-rank maps lower the perplexity ratio from 33.1 to 1.65, with 25.5 million parameters removed.
    <!-- measured: bypasses("subfit", "identity").evaluation, bypasses("subfit", "low_rank").evaluation,
    bypasses("subfit", "low_rank").net -->

These are Python expressions. Every study is a function by the name of its folder (`-` becomes `_`): given the labels of a
row, or how they begin, it returns what was measured there, see `Measured`. A benchmark is the content of its
`benchmark.json`. A number is right if its expression has the same value, rounded to as many digits; `%`, `million`, `ms` and
`MiB` after it are taken into account. Numbers in code, in names such as WikiText-2, in tables that are generated
(between `<!-- table ... -->` and `<!-- end -->`) and plain counts (`PLAIN`) need no comment; any other fails.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from subfit.ablation.measures import label, net_parameters
from subfit.ablation.replicates import merge_seeds
from subfit.ablation.rows import read_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
SCALES = {"%": 0.01, "million": 1e6, "M": 1e6, "ms": 1e-3, "MiB": 2**20}
NUMBER = re.compile(r"(?<![\w.])(?<!\w[-/])(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?)(?!\w|\.\d)")  # and its decimals
UNIT = re.compile(
    r"(?: to -?[\d.,]+)?\s?(%|million|MiB|ms|M)(?!\w)"
)  # the first number of a range shares that of the second
UNITS = (
    "windows tokens layers attentions feedforwards submodules items tasks cores threads seeds steps rounds generations "
    "cells scorers selectors bypasses presets baselines methods texts rows runs studies sizes blocks prompts questions"
)
SPARSITY = r"(?:10|12\.5|13|18\.75|20|25|27|30|31\.25|37|37\.5)"
COUNT = r"(?:(?<![.\d])\d[\d,]*(?: and| or| to| x| of the| of)? )+"
PLAIN = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{COUNT}(?:[\w-]+ )?(?:{'|'.join(f'{unit}|{unit[:-1]}' for unit in UNITS.split())})\b",
        r"\b(?:layer|layers|FeedForward|FeedForwards|Attention|Attentions|seed|step) \d+(?:(?:,| and|, and| to) \d+)*\b",
        r"\b\d+ % of (?:the )?removed parameters\b",
        r"\b95 % (?:\w+ )?(?:confidence )?intervals?\b",
        rf"\b(?:at|of|from|up to) {SPARSITY} %(?:(?:,| and| to) {SPARSITY} %)*",
        r"\barXiv \d+\.\d+|\b(?:Python|Llama|Gemma|OLMo|Qwen|SmolLM|vLLM|transformers|torch)[ -]?\d+(?:\.\d+)*",
        r"\b\d+(?:st|nd|rd|th)\b|\b20\d\d(?:-\d\d)*\b|^\d+\. ",
    )
]


def merged_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study, those that differ in their seed alone as one, as a report has them."""
    return merge_seeds(list(read_rows(folder).values()))


class Measured:
    """What was measured in a row.

    Attributes: the perplexity ratio by the name of each text; `by_seed`, the same of each seed, where there are several;
    `agreement`; `kl` in nats; `net`, the parameters removed, less `added`, those of the bypasses; `cache`, the share of the
    key-value cache that is left; `retained` and `above_chance`, shares of the dense model's accuracy; `seconds` by stage;
    and `row`, the whole.
    """

    def __init__(self, row: dict[str, Any]):
        first, size = next(iter(row["texts"].values())), row["size"]
        vars(self).update({name: text["perplexity_ratio"] for name, text in row["texts"].items()})
        self.agreement, self.kl = first["agreement"], first["kl"]
        logs = {name: text.get("log_ratios", {}) for name, text in row["texts"].items()}
        self.by_seed = {name: [math.exp(log) for log in found.values()] for name, found in logs.items()}
        self.net, self.added = net_parameters(row), size["added_parameters"]
        self.cache = size["after"]["kv_bytes_per_token"] / size["before"]["kv_bytes_per_token"]
        tasks = row.get("tasks_mean", {})
        self.retained, self.above_chance = tasks.get("retained"), tasks.get("retained_above_chance")
        self.seconds, self.row = row["seconds"], row


class Study:
    """The rows of a study, found by their labels."""

    def __init__(self, folder: Path):
        self.rows = merged_rows(folder)

    def __call__(self, *labels: str | float) -> Measured:
        rows = self.rows
        for place, wanted in enumerate(map(str, labels)):
            named = [(label(list(row["values"].values())[place]), row) for row in rows]
            rows = [row for name, row in named if name == wanted] or [row for name, row in named if name.startswith(wanted)]
        if len(rows) != 1:
            raise KeyError(f"{len(rows)} rows begin with {', '.join(map(str, labels))}")
        return Measured(rows[0])

    def all(self, **values: Any) -> list[Measured]:
        """All rows with these values."""
        return [Measured(row) for row in self.rows if row["values"] | values == row["values"]]


def stored() -> dict[str, Any]:
    """Returns the studies and benchmarks by name."""
    found: dict[str, Any] = {path.parent.name: Study(path.parent) for path in RESULTS.glob("*/rows.jsonl")}
    for path in RESULTS.glob("**/benchmark.json"):
        found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return {name.replace("-", "_"): value for name, value in found.items()}


def problems(path: Path, names: dict[str, Any]) -> list[str]:
    """Returns a line for each number in a Markdown file that is not the stored one, or has no expression."""
    found = []
    for text, expressions in _paragraphs(path.read_text(encoding="utf-8")):
        for pattern in PLAIN:
            text = pattern.sub(" ", text)
        shown = list(NUMBER.finditer(text))
        values = eval(f"[{expressions}]", {**names}) if expressions else []
        if len(shown) != len(values):
            numbers = ", ".join(match.group() for match in shown)
            found.append(f"{path}: {len(shown)} numbers ({numbers}), but {len(values)} expressions: {text.strip()[:120]}")
            continue
        for match, value in zip(shown, values, strict=True):
            unit = UNIT.match(text, match.end())
            scale = SCALES[unit[1]] if unit else 1
            if abs(float(match[1].replace(",", "")) * scale - value) > 0.5001 * scale * 10.0 ** -len(match[2] or ""):
                found.append(f"{path}: {match.group()} is {value / scale:.5g} by the file: {text.strip()[:120]}")
    return found


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Yields paragraphs, list items and headings, without code, links and generated tables, each with its expressions."""
    for pattern in (r"^```.*?^```", r"<!-- table.*?<!-- end -->"):
        text = re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE)
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        expressions = " ".join(" ".join(re.findall(r"<!-- measured:(.*?)-->", part, flags=re.DOTALL)).split())
        plain = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)|https?://\S+", " ", part, flags=re.DOTALL)
        yield " ".join(plain.split()), expressions
