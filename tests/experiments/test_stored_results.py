"""The pages, tables and numbers that come with the project are those of the stored measurements."""

import re

import pytest
from measured import RESULTS, problems, stored
from stored_tables import PAGES, filled, whole

NAMES = stored()
MOST_ROWS = 16  # of a table on a page


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
        stored = page.parent.rglob("*.png") if page.parent != RESULTS else []
        assert shown == {str(path.relative_to(page.parent)) for path in stored}, page
