"""The tables on the pages of `experiments/results`, made from the stored measurements.

A page has its tables between `<!-- table -->` and `<!-- end -->`. On the page of an ablation, `<!-- table axis=value -->`
shows the rows with this value alone. Columns that are equal in all rows shown are left out.
`python tests/stored_tables.py` writes all tables anew.
"""

import json
import re
from pathlib import Path

from measured import RESULTS, ROOT, merged_rows

from subfit.ablation.measures import axis_label, varying
from subfit.ablation.table import columns_of, markdown

PAGES = sorted(RESULTS.glob("**/README.md"))
MARKED = re.compile(r"(<!-- table ?(.*?) ?-->\n).*?(<!-- end -->)", re.DOTALL)


def filled(path: Path) -> str:
    """Returns a page with its tables as they should be."""
    text = path.read_text(encoding="utf-8")
    return MARKED.sub(lambda match: f"{match[1]}\n{_table(path.parent, match[2])}\n{match[3]}", text)


def _table(folder: Path, chosen: str) -> str:
    name, _, rest = chosen.partition(" ")
    if name == "speeds":
        return speeds(rest or "speed")
    if name == "requests":
        return requests(rest)
    return costs() if name == "costs" else study(folder, chosen)


def whole(folder: Path) -> str:
    """The whole table of an ablation, as its report has it."""
    rows = merged_rows(folder)
    return markdown(columns_of(rows, varying(rows, list(rows[0]["values"]))), rows)


def study(folder: Path, chosen: str) -> str:
    """The table of an ablation, or of its rows with one value of an axis."""
    rows = merged_rows(folder)
    axes = varying(rows, list(rows[0]["values"]))
    axis, _, value = chosen.partition("=")
    rows = [row for row in rows if not axis or axis_label(row, axis) == value]
    columns = [column for column in columns_of(rows, axes) if len({column.field(row) for row in rows}) > 1]
    return markdown([column for column in columns if not column.name.startswith(("parameters added", "time"))], rows)


def benchmark(name: str) -> dict:
    return json.loads((RESULTS / name / "benchmark.json").read_text(encoding="utf-8"))


def speeds(name: str) -> str:
    """A line for each prompt, and for each batch and context that is decoded."""
    result = benchmark(name)
    named = [(f"read a prompt of {entry['prompt_length']} tokens", entry) for entry in result["prefill"]]
    for entry in result["decoding"]:
        batch = f", {entry['batch_size']} at once" if entry["batch_size"] > 1 else ""
        named.append((f"decode {entry['new_tokens']} tokens after {entry['context']}{batch}", entry))
    lines = [
        "| | dense ↓ | compressed ↓ | times as fast ↑ | ideal | reached ↑ |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, entry in named:
        speed, seconds = entry["speedup"], entry["seconds"]
        low, high = speed["quartiles"]
        times = f"{1000 * seconds['dense']:.0f} ms | {1000 * seconds['compressed']:.0f} ms"
        ratios = f"{speed['measured']:.2f} [{low:.2f}, {high:.2f}] | {speed['ideal']:.2f} | {speed['reached']:.0%}"
        lines.append(f"| {name} | {times} | {ratios} |")
    return "\n".join(lines) + "\n"


def requests(name: str) -> str:
    """What an engine's cache holds, and a line for each batch of requests."""
    result = benchmark(name)
    cache = {key: result["engine"]["cache"][key] for key in ("dense", "compressed")}
    where = f"{result['engine']['version']}, {result['setting']['dtype']}, threads: {result['setting']['threads']}"
    lines = [f"| {where} | dense | compressed |", "| --- | ---: | ---: |"]

    def add(text: str, values: dict[str, float], digits: int = 0) -> None:
        lines.append(f"| {text} | {' | '.join(f'{values[key]:,.{digits}f}' for key in cache)} |")

    add("bytes of cache for a token ↓", {key: its["bytes_per_token"] for key, its in cache.items()})
    if all(its["tokens"] for its in cache.values()):
        add("tokens in the memory for the cache ↑", {key: its["tokens"] for key, its in cache.items()})
    for entry in result["decoding"]:
        at_once = entry["requests_at_once"]
        if at_once["compressed"] > at_once["dense"]:
            add("requests at once, in equal memory ↑", at_once)
        add(f"requests per second, {at_once['dense']} at once in the dense model ↑", entry["requests_per_second"], 2)
    return "\n".join(lines) + "\n"


def costs() -> str:
    """A line for each shape and number of calibration windows."""
    names = ("layers", "width", "tokens", "forward, s", "score, s", "select, s", "fit, s", "passes ↓", "memory ↓")
    lines = [f"| {' | '.join(names)} |", "| ---: " * len(names) + "|"]
    for name in ("smollm2-135m", "half-the-depth", "twice-the-depth", "twice-the-width", "width-4096"):
        result = benchmark(f"compression/{name}")
        shape = json.loads((ROOT / result["model"]).read_text(encoding="utf-8"))
        for cost in result["compression"]:
            seconds = " | ".join(f"{cost['seconds'][stage]:.1f}" for stage in ("forward", "score", "select", "fit"))
            tokens, memory = cost["windows"] * cost["length"], cost["peak_bytes"] / 2**20
            size = f"{shape['num_hidden_layers']} | {shape['hidden_size']} | {tokens:,}"
            lines.append(f"| {size} | {seconds} | {cost['forwards']:.2f} | {memory:.0f} MiB |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page), encoding="utf-8")
