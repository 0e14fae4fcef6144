import csv
import json
import multiprocessing
import time

import pytest

from subfit.ablation.rows import Rows
from subfit.errors import SubFitError
from subfit.tracking.records import FORMAT_VERSION

GRID = {"cells": {"x": {"seed": 1}}, "texts": {}}


def failed(cell: str, **more) -> dict:
    """A row of a cell that has failed, whose fields are few."""
    return {"cell": cell, "status": "failed", "error": "mine", **more}


def test_the_last_row_of_a_cell_counts_and_the_table_has_a_column_for_each_value(tmp_path):
    rows = Rows(tmp_path / "a" / "b", GRID)
    rows.append(failed("x", error="of no use"))
    rows.append(failed("y", size={"before": 2, "after": 1}, selected=["ffn.1", "ffn.2"]))
    rows.append(failed("x"))
    assert Rows(tmp_path / "a" / "b", GRID).read()["x"] == failed("x")
    rows.write_table()
    with open(tmp_path / "a" / "b" / "results.csv") as file:
        table = {row["cell"]: row for row in csv.DictReader(file)}
    assert table["y"] == {**failed("y"), "size.before": "2", "size.after": "1", "selected": "ffn.1 ffn.2"}


def test_a_half_written_line_is_no_row_and_is_removed(tmp_path):
    rows = Rows(tmp_path, GRID)
    rows.append(failed("x"))
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"cell": "y", "stat')
    assert list(rows.read()) == ["x"]
    rows.append(failed("z"))
    assert list(rows.read()) == ["x", "z"]
    assert [json.loads(line)["cell"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ["x", "z"]


def test_a_damaged_line_is_left_out_and_said(tmp_path, caplog):
    rows = Rows(tmp_path, GRID)
    for cell in "xyz":
        rows.append(failed(cell))
    lines = (tmp_path / "rows.jsonl").read_bytes().split(b"\n")
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([lines[0], b'{"cell": "y\xff', *lines[2:]]))
    assert list(rows.read()) == ["x", "z"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/rows.jsonl:2: this line is damaged, and is left out"
    ]


def test_a_row_of_a_newer_format_is_refused(tmp_path):
    rows = Rows(tmp_path, GRID)
    rows.append(failed("x", format_version=FORMAT_VERSION + 1))
    with pytest.raises(SubFitError, match=r"rows\.jsonl:1: written by a newer subfit \(format 3; this one reads up to 2\)"):
        rows.read()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    Rows(tmp_path / "rows", {"grid": 1})
    with pytest.raises(SubFitError, match="rows of another grid: its grid are others; give another folder"):
        Rows(tmp_path / "rows", {"grid": 2})
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(SubFitError, match="something else than an ablation"):
        Rows(tmp_path, {"grid": 1})
    with pytest.raises(SubFitError, match="cannot write to the folder"):
        Rows(tmp_path / "thesis.txt" / "folder", {"grid": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows", "thesis.txt"]


def hold(folder, taken):
    with Rows(folder, GRID).claim("x") as mine:
        taken.value = mine
        time.sleep(60)


def test_a_claim_is_one_processs_until_it_ends_or_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken = context.Value("b", False)
    other = context.Process(target=hold, args=(tmp_path, taken))
    other.start()
    while not taken.value:
        assert other.is_alive()
        time.sleep(0.05)
    rows = Rows(tmp_path, GRID)
    with rows.claim("x") as mine, rows.claim("y") as free:
        assert not mine and free
    other.kill()
    other.join()
    with rows.claim("x") as mine:
        assert mine


def fill(folder, start):
    rows = Rows(folder, GRID)
    for index in range(start, start + 50):
        rows.append(failed(str(index), filler="x" * 5000))


def test_rows_of_many_processes_are_all_there(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=fill, args=(tmp_path, 100 * index)) for index in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Rows(tmp_path, GRID).read()) == 150


def test_a_folder_that_another_process_is_about_to_describe_is_no_strangers(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / ".grid.json.123.partial").write_text("half of")
    Rows(tmp_path, GRID).append(failed("x"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SubFitError, match="something else than an ablation"):
        Rows(tmp_path / "other", GRID)


def test_a_grid_may_grow(tmp_path):
    Rows(tmp_path, GRID).append(failed("x"))
    more = {**GRID, "cells": {**GRID["cells"], "y": {"seed": 2}}}
    assert list(Rows(tmp_path, more).read()) == ["x"]
    assert json.loads((tmp_path / "grid.json").read_text()) == more
    for other, why in (
        (GRID, 'the cell {"seed": 2} is gone, or has other options'),
        ({**more, "texts": {"story": {}}}, "its texts are others"),
    ):
        with pytest.raises(SubFitError, match=f"holds the rows of another grid: {why}"):
            Rows(tmp_path, other)


@pytest.mark.parametrize(
    "line",
    [
        "null",
        '"x"',
        '{"cell": 1, "status": "done"}',
        '{"cell": "y"}',
        '{"cell": "y", "status": "done"}',
        '{"cell": "y", "status": "failed", "error": null}',
        '{"cell": "y", "status": "failed", "error": "e", "values": []}',
        '{"cell": "y", "status": "failed", "error": "e", "format_version": "2"}',
        '{"cell": "y", "status": "failed", "error": "e", "total_seconds": "1"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_row_is_left_out(tmp_path, line, caplog):
    Rows(tmp_path, GRID).append(failed("x"))
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write(f"{line}\n")
    assert list(Rows(tmp_path, GRID).read()) == ["x"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/rows.jsonl:2: this line is damaged, and is left out"
    ]


def test_a_damaged_description_is_one_line(tmp_path):
    Rows(tmp_path, GRID)
    (tmp_path / "grid.json").write_text("[1")
    with pytest.raises(SubFitError, match="cannot read .*grid.json: "):
        Rows(tmp_path, GRID)
