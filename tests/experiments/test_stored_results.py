"""The pages, tables and numbers that come with the project are those of the stored measurements, and so are the README's."""

import re

import pytest
from measured import RESULTS, ROOT, problems, stored
from stored_tables import PAGES, benchmark, filled, whole

from subfit.ablation.measures import net_parameters

NAMES = stored()
MOST_ROWS = 15  # of a table on a page


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/rows.jsonl")), ids=lambda path: path.name)
def test_whole_tables_equal_the_rows(folder):
    assert whole(folder) == (folder / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
def test_a_page_holds_what_was_measured(page):
    text = page.read_text(encoding="utf-8")
    assert text == filled(page), "python tests/stored_tables.py makes the tables"
    assert not problems(page, NAMES)
    tables = re.findall(r"<!-- table.*?-->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    assert all(len(table.strip().splitlines()) - 2 <= MOST_ROWS for table in tables)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target


def test_the_index_has_every_study_and_every_study_its_page():
    index = (RESULTS / "README.md").read_text(encoding="utf-8")
    studies = {path.name for path in RESULTS.iterdir() if path.is_dir()}
    assert studies == {name for name in re.findall(r"^\| \[[^]]*\]\(([\w-]+)\)", index, flags=re.MULTILINE)}
    assert studies == {page.parent.name for page in PAGES} - {RESULTS.name}
    for page in PAGES:
        shown = set(re.findall(r"!\[[^]]+\]\((.*?)\)", page.read_text(encoding="utf-8")))
        assert shown == {path.name for path in page.parent.glob("*.png")}, page


def quality() -> dict[str, dict[float, dict]]:
    """The rows of the presets, by preset and sparsity, as far as all presets were measured at it."""
    found: dict[str, dict[float, dict]] = {}
    for row in NAMES["quality"].rows:
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
    shown, lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines(), headline()
    place = shown.index(lines[0])
    assert shown[place : place + len(lines)] == lines


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
