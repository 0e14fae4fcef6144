"""The measured numbers in the documents are the stored ones."""

import re

import pytest
from documents import PAGES, ROOT
from measured import Measured, problems, stored

SIZE = 0.2667  # 8 of 30 layers
WHOLE = ("greedy", "subfit")  # presets that take out whole submodules, as they ship
OTHERS = ("sleb", "shortgpt", "llm_streamline", "replaceme")


@pytest.fixture(scope="module")
def studies():
    return stored()


WRITTEN = [page for page in PAGES if page.name != "families.md"]  # which is generated, see tests/model/test_families.py


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_numbers_in_the_text(page, studies):
    assert problems(page, studies) == []


def line(name: str, its: Measured) -> str:
    """A row of the README's table."""
    ratios = f"{its.evaluation:.2f} | {its.narrative:.2f}"
    return f"| `{name}` | {ratios} | {its.retained:.0%} | {its.net / 1e6:.1f} M | {its.cache:.0%} |"


def test_the_table_of_the_readme(studies):
    shown = re.search(r"<!-- table: .*?-->\n(.*?)<!-- end -->", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    rows = {"best": studies["quality"]("best", SIZE)} | {name: studies["presets"](name) for name in WHOLE}
    rows |= {name: studies["quality"](name, SIZE) for name in OTHERS}
    assert shown.splitlines()[2:] == [line(name, row) for name, row in rows.items()]


def test_the_numbers_in_the_picture(studies):
    row, speed = studies["sparsities"]("subfit", 0.25), studies["speed"]
    before, after = (row.row["size"][when]["parameters"] for when in ("before", "after"))
    picture = (ROOT / "docs" / "images" / "subfit.svg").read_text()
    texts = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture))
    kinds = [name.split(".")[0] for name in row.row["selected"]]
    assert f"{kinds.count('attention')} of 30 Attentions and {kinds.count('ffn')} of 30 FeedForwards" in texts
    assert f"{1 - after / before:.0%} fewer".replace("%", " %") in texts
    assert f"{1 - row.cache:.0%} less".replace("%", " %") in texts
    assert f"{speed['prefill'][-1]['speedup']['measured']:.2f} times as fast" in texts
    assert f"{row.evaluation:.2f} times the perplexity" in texts
