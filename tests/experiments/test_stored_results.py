"""The tables that come with the project, and that of the README, are those of the rows that come with it."""

import json
from pathlib import Path

import pytest

from subfit.ablation.measures import net_parameters
from subfit.ablation.report import report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/rows.jsonl")), ids=lambda path: path.name)
def test_tables_equal_the_rows(folder, tmp_path):
    table = report([str(folder)], str(tmp_path)).with_name("table.md").read_text(encoding="utf-8")
    assert table == (folder / "table.md").read_text(encoding="utf-8")
    assert table in (RESULTS / "README.md").read_text(encoding="utf-8")


def quality() -> dict[str, dict[float, dict]]:
    """The rows of the presets, by preset and sparsity, as far as all presets were measured at it."""
    rows = [json.loads(line) for line in (RESULTS / "quality" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[float, dict]] = {}
    for row in rows:
        found.setdefault(row["values"]["preset"], {})[row["values"]["sparsity"]] = row
    common = sorted(set.intersection(*map(set, found.values())))
    return {preset: {sparsity: sizes[sparsity] for sparsity in common} for preset, sizes in found.items()}


def headline() -> list[str]:
    """The lines of the README's table, one for each preset: its ratios in and outside the domain; the rest at 27 %."""
    lines = []
    for preset, sizes in quality().items():
        texts = [row["texts"] for row in sizes.values()]
        ratios = [f"{t['evaluation']['perplexity_ratio']:.2f} ({t['narrative']['perplexity_ratio']:.2f})" for t in texts]
        row = sizes[0.2667]
        kept = row["size"]["after"]["kv_bytes_per_token"] / row["size"]["before"]["kv_bytes_per_token"]
        retained = f"{row['tasks_mean']['retained']:.0%}" if "tasks_mean" in row else ""
        lines.append(f"| {preset} | {' | '.join(ratios)} | {retained} | {net_parameters(row) / 1e6:.1f} M | {kept:.0%} |")
    return lines


def test_the_readmes_table_is_that_of_the_rows():
    check_table(ROOT / "README.md", headline())


def check_table(path: Path, lines: list[str]) -> None:
    shown = path.read_text(encoding="utf-8").splitlines()
    place = shown.index(lines[0])
    assert shown[place : place + len(lines)] == lines


def benchmark(name: str) -> dict:
    return json.loads((RESULTS / name / "benchmark.json").read_text(encoding="utf-8"))


def speeds() -> list[str]:
    """The lines of the table of speeds, one for each prompt, and for each batch and context that is decoded."""
    result = benchmark("speed")
    named = [(f"prefill, {entry['prompt_length']} tokens", entry) for entry in result["prefill"]]
    named += [(f"decoding {e['new_tokens']} tokens after {e['context']}", e) for e in result["decoding"]]
    lines = []
    for name, entry in named:
        speed, seconds = entry["speedup"], entry["seconds"]
        low, high = speed["quartiles"]
        times = f"{1000 * seconds['dense']:.0f} ms | {1000 * seconds['compressed']:.0f} ms"
        ratios = f"{speed['measured']:.2f} [{low:.2f}, {high:.2f}] | {speed['ideal']:.2f} | {speed['reached']:.0%}"
        lines.append(f"| {name} | {times} | {ratios} |")
    return lines


def test_the_table_of_speeds_is_that_of_the_benchmark():
    check_table(RESULTS / "README.md", speeds())


def costs() -> list[str]:
    """The lines of the table of what a compression costs, one for each shape and number of calibration windows."""
    lines = []
    for name in ("smollm2-135m", "half-the-depth", "twice-the-depth", "twice-the-width"):
        result = benchmark(f"compression/{name}")
        shape = json.loads((ROOT / result["model"]).read_text(encoding="utf-8"))
        for cost in result["compression"]:
            seconds = " | ".join(f"{cost['seconds'][stage]:.1f}" for stage in ("forward", "score", "select", "fit"))
            tokens, memory = cost["windows"] * cost["length"], cost["peak_bytes"] / 2**20
            size = f"{shape['num_hidden_layers']} | {shape['hidden_size']} | {tokens:,}"
            lines.append(f"| {size} | {seconds} | {cost['forwards']:.2f} | {memory:.0f} MiB |")
    return lines


def test_the_table_of_costs_is_that_of_the_benchmarks():
    check_table(RESULTS / "README.md", costs())


def test_the_readmes_speeds_are_those_of_the_benchmark():
    result = benchmark("speed")
    prompt = next(e["speedup"] for e in result["prefill"] if e["prompt_length"] == 1024)
    token = next(e["speedup"] for e in result["decoding"] if e["context"] == 512)
    kv = {name: size["kv_bytes_per_token"] for name, size in result["size"].items()}
    read, decoded = (f"{e['measured']:.2f} times as fast, {e['reached']:.0%}" for e in (prompt, token))
    for said in (
        f"1024 tokens is read {read} of what the removed arithmetic",
        f"after 512 are decoded {decoded} of what the removed bytes",
        f"key-value cache takes {kv['compressed'] / kv['dense']:.0%} of the memory",
    ):
        assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
