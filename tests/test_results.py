"""The tables that come with the project are those of the rows that come with it."""

from pathlib import Path

import pytest

from subfit.report import report

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/rows.jsonl")), ids=lambda path: path.name)
def test_tables_equal_the_rows(folder, tmp_path):
    table = report([str(folder)], str(tmp_path)).with_name("table.md").read_text(encoding="utf-8")
    assert table == (folder / "table.md").read_text(encoding="utf-8")
    assert table in (RESULTS / "README.md").read_text(encoding="utf-8")
