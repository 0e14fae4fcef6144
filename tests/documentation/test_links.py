"""The pages hold together: links lead somewhere, every page is in the index, and what they list is what there is."""

import re
import tomllib

import pytest
from documents import PAGES, ROOT, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")
LONGEST = 160  # lines of the README


def anchors(text: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_index_and_says_what_it_is_for():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(prose(index)) if "://" not in link}
    pages = set((ROOT / "docs").glob("*.md")) - {index}
    assert pages <= linked
    for page in pages:
        title, _, first = page.read_text(encoding="utf-8").splitlines()[:3]
        assert title.startswith("# ") and first.startswith("After this page you can "), page


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST
    assert max(len(line) for line in lines if not line.startswith("|")) <= 125


def test_the_layers_are_those_that_are_enforced():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)
    assert [re.findall(r"\w+", line) for line in shown] == [re.findall(r"\w+", layer) for layer in layers]
    assert "\n".join(f"    {layer}" for layer in layers) in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_baseline_is_a_row_of_the_related_methods():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for preset in (ROOT / "experiments" / "baselines").glob("*.yaml"):
        paper = re.search(r"arXiv (\d+\.\d+)", preset.read_text())[1]
        assert f"https://arxiv.org/abs/{paper}" in readme, preset.name
