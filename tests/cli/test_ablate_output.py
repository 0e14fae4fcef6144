"""What `subfit ablate` shows: a line for each cell in a pipe, a table on a terminal; and at the end."""

import json
import re
import sys

import pytest
from terminals import Terminal, plain

from subfit.cli.cells import SHOWN, show_rows
from subfit.cli.main import main


@pytest.fixture
def grid(model_folder, text_file, tmp_path):
    options = {"model": str(model_folder), "calibration": {"path": str(text_file), "windows": 4, "length": 32}}
    ranks = {str(rank): {"attention_bypass": {"class_path": "low_rank", "init_args": {"rank": rank}}} for rank in (2, 1000)}
    content = {"options": {**options, "evaluation": {"windows": 1}}, "axes": {"rank": ranks, "sparsity": [0.25, 0.5]}}
    (tmp_path / "grid.yaml").write_text(json.dumps(content))
    return tmp_path


def test_in_a_pipe_each_finished_cell_is_a_line(grid, subfit):
    done = subfit("ablate", "grid.yaml", "--output", "runs")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    measured = r"ratio [\d.]+ \(evaluation\), agreement [\d.]+%, [-\d,]+ parameters out, [\d.]+ s"
    left = r", [\d.]+ (s|min [\d]+ s) left"
    assert re.fullmatch(rf"\[1/4\] rank=2, sparsity=0.25: {measured}{left}", lines[0])
    assert re.fullmatch(rf"\[2/4\] rank=2, sparsity=0.5: {measured}{left}", lines[1])
    assert re.fullmatch(rf"\[3/4\] rank=1000, sparsity=0.25: failed, [\d.]+ s: SubFitError: .*1000.*{left}", lines[2])
    assert re.fullmatch(r"\[4/4\] rank=1000, sparsity=0.5: failed, [\d.]+ s: SubFitError: .*1000.*", lines[3])
    assert all(line.startswith("failed: ") for line in lines[4:]) and len(lines) == 6
    assert "ratio, evaluation" in done.stdout and "runs/results.csv" in done.stdout and "subfit report runs" in done.stdout


@pytest.mark.parametrize("columns", [50, 140])
def test_on_a_terminal_a_table_is_live(grid, columns):
    command = [sys.executable, "-m", "subfit.cli", "ablate", "grid.yaml", "--output", "runs"]
    shown, status = Terminal(command, grid, columns).end()
    text = plain(shown)
    assert status == 1 and "…" not in text and "running" in text
    assert "4 of 4 cells finished, 2 of them failed" in text
    assert all(f"cell {number} of 4" in text for number in (1, 2, 3, 4))  # however short they are
    assert ("rank: 2, sparsity: 0.25, status: " in text) == (columns == 50)


def test_of_many_cells_the_best_are_shown(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    sizes = {"before": {"parameters": 10}, "after": {"parameters": 7}}
    rows = [
        {
            "values": {"seed": seed, "scorer": "kl"},
            "status": "done",
            "texts": {"evaluation": {"perplexity_ratio": 3 - seed / 100, "agreement": 0.5, "kl": 0.25}},
            "size": sizes,
            "total_seconds": 1.0,
        }
        for seed in range(2 * SHOWN)
    ]
    show_rows(rows, "a folder")
    shown = capsys.readouterr().out
    seeds = [int(line.split()[0]) for line in shown.splitlines() if re.match(r"\d+ +kl ", line)]
    assert seeds == list(range(2 * SHOWN - 1, SHOWN - 1, -1)) and f"The 20 lowest ratios of {2 * SHOWN} cells." in shown
    assert "a folder/results.csv" in shown and "subfit report 'a folder'" in shown


def test_a_grid_without_an_evaluation(grid, capsys, monkeypatch):
    monkeypatch.chdir(grid)
    content = json.loads((grid / "grid.yaml").read_text())
    content["options"]["evaluation"]["windows"] = 0
    content["axes"].pop("rank")
    (grid / "grid.yaml").write_text(json.dumps(content))
    assert main(["ablate", "grid.yaml", "--output", "runs"]) == 0
    shown = capsys.readouterr()
    assert "2 cells\n" in shown.out and "subfit report" not in shown.out
    assert re.search(r"\[1/2\] sparsity=0.25: [-\d,]+ parameters out", shown.err)
