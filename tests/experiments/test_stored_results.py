"""The tables that come with the project are those of the rows that come with it."""

import json
from pathlib import Path

import pytest

from subfit.ablation.report import report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/rows.jsonl")), ids=lambda path: path.name)
def test_tables_equal_the_rows(folder, tmp_path):
    table = report([str(folder)], str(tmp_path)).with_name("table.md").read_text(encoding="utf-8")
    assert table == (folder / "table.md").read_text(encoding="utf-8")
    assert table in (RESULTS / "README.md").read_text(encoding="utf-8")


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
