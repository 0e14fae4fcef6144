"""Ablations from the outside: a grid on a tiny model, each cell as `subfit compress` would do it."""

import json
import signal
import sys
import time

import pytest
import yaml
from forked import start
from words import rows as task_rows

from subfit import api
from subfit.ablation import runner
from subfit.ablation.report import report
from subfit.ablation.runner import ablate
from subfit.calibration.capture import Calibration
from subfit.config import resolve

DATA = {"calibration": {"windows": 6, "length": 32}, "evaluation": {"windows": 2}}


@pytest.fixture
def grid(tmp_path, model_folder, text_file):
    """Writes a grid file on the tiny model and returns its path."""

    def write(name="grid.yaml", **content):
        options = {"model": str(model_folder), "sparsity": 0.5, **json.loads(json.dumps(DATA))}
        options["calibration"]["path"] = str(text_file)
        (tmp_path / name).write_text(yaml.safe_dump({"options": options, **content}, sort_keys=False))
        return str(tmp_path / name)

    return write


def run(path, output, shard="1/1"):
    seen = []
    rows = ablate(path, str(output), shard, lambda cell, status, row: seen.append((cell.name, status)))
    return rows, seen


def comparable(record):
    """What of a record does not depend on when and where it was made."""
    return {key: record[key] for key in ("scores", "selected", "explained_variance", "size")}


def test_cells_equal_single_runs_bit_for_bit(grid, tmp_path, text_file):
    axes = {
        "scorer": ["subfit", {"class_path": "kl", "init_args": {"windows": 2, "length": 16}}],
        "bypass": {
            "low": {},
            "mlp": {"ffn_bypass": "mlp", "ffn_bypass.init_args.steps": 5},
            "moved": {"fitting": "sequential", "correction": 0.5},
            "merged": {"config": str(tmp_path / "merged.yaml")},
        },
        "sparsity": [0.25, 0.5],
    }
    merged = {
        "selector": "contiguous",
        "protect": ["layer.0"],
        "attention_bypass": "identity",
        "ffn_bypass": {"class_path": "at_cut", "init_args": {"bypass": "replace_me"}},
        "fitting": "sequential",
    }
    (tmp_path / "merged.yaml").write_text(yaml.safe_dump(merged))
    rows, _ = run(grid(axes=axes, texts={"same": {"path": str(text_file), "windows": 2, "length": 32}}), tmp_path / "out")
    assert len(rows) == 16
    for row in rows:
        assert row["status"] == "done", row
        alone = api.run(resolve(row["configuration"])).record
        assert comparable(row) == comparable(alone), row["values"]
        assert row["texts"]["evaluation"] == alone["evaluation"], row["values"]
        assert row["texts"]["same"]["perplexity"] > 0


def test_scores_and_moments_are_computed_once(grid, tmp_path, monkeypatch):
    passes = []
    watch = Calibration.watch_sites

    def counted(self, sites, label, *rest):
        passes.append((label, len(sites)))
        watch(self, sites, label, *rest)

    monkeypatch.setattr(Calibration, "watch_sites", counted)
    axes = {
        "scorer": ["rotation", "magnitude"],
        "bypass": {name: {"attention_bypass": name, "ffn_bypass": name} for name in ("linear", "low_rank", "mean")},
        "sparsity": [0.25, 0.5],
    }
    path = grid(axes=axes)
    first, _ = run(path, tmp_path / "one")
    assert sorted(entry for entry in passes if entry[1]) == [("fitting", 8), ("scoring", 8)]
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "cache").rename(tmp_path / "two" / "cache")
    (tmp_path / "two" / "grid.json").write_bytes((tmp_path / "one" / "grid.json").read_bytes())
    passes.clear()
    second, _ = run(path, tmp_path / "two")
    assert not any(count for _, count in passes)  # all of it is on disk
    assert [comparable(row) for row in first] == [comparable(row) for row in second]


def test_a_failed_cell_is_a_row_and_is_tried_again_while_finished_ones_are_not(grid, tmp_path, monkeypatch, caplog):
    scores = tmp_path / "scores.json"
    spec = {"class_path": "file", "init_args": {"path": str(scores)}}
    scores.write_text(json.dumps({f"{kind}.{i}": 1.0 for kind in ("attention", "ffn") for i in range(3)}))  # one layer lacks
    path = grid(axes={"scorer": ["rotation", spec, "magnitude"]})
    rows, seen = run(path, tmp_path / "out")
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert "attention.3" in rows[1]["error"] and len(seen) == 9
    scores.write_text(json.dumps({f"{kind}.{i}": 1.0 for kind in ("attention", "ffn") for i in range(4)}))
    monkeypatch.setattr(runner, "processor", lambda: "Fast 9000")
    caplog.clear()
    rows, seen = run(path, tmp_path / "out")
    (said,) = [message for message in caplog.messages if "finished cells are kept" in message]
    assert said.endswith(f"numbers may differ in their last digits: {rows[0]['processor']}; Fast 9000")
    assert [row["status"] for row in rows] == ["done"] * 3
    assert [status for _, status in seen] == ["done", "waiting", "done", "running", "done"]


def test_a_fit_that_fails_half_way_leaves_no_trace_in_the_next_cells(grid, tmp_path):
    failing = {"fitting": "sequential", "ffn_bypass": {"class_path": "low_rank", "init_args": {"rank": 1000}}}
    rows, _ = run(grid(axes={"bypass": {"failing": failing, "sound": {}}}), tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "done"] and "rank is 1000" in rows[0]["error"]
    alone = api.run(resolve(rows[1]["configuration"])).record
    assert comparable(rows[1]) == comparable(alone) and rows[1]["texts"]["evaluation"] == alone["evaluation"]


def test_a_scorer_that_fails_fails_its_own_cells_alone(grid, tmp_path):
    code = (
        "from subfit.scorer import StreamScorer\nclass Bad(StreamScorer):\n    def update(self, h, x, y):\n        1 / 0\n"
    )
    (tmp_path / "bad.py").write_text(f"{code}    def compute(self):\n        return 0.0\n")
    path = grid(axes={"scorer": ["rotation", str(tmp_path / "bad.py"), "magnitude"]})
    rows = ablate(path, str(tmp_path / "out"), allow_code=True)
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert "bad.py:4): ZeroDivisionError" in rows[1]["error"]


def test_tasks_are_measured_as_on_the_saved_model(grid, tmp_path, model_folder):
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps(row) for row in task_rows(31)))
    path = grid(axes={"sparsity": [0.0, 0.5]}, tasks=[str(tmp_path / "toy.jsonl")], limit=30)
    (same, row), _ = run(path, tmp_path / "out")
    assert same["tasks_mean"]["retained"] == 1
    api.run(resolve(row["configuration"], {"output": str(tmp_path / "model")}))
    found = api.evaluate(str(tmp_path / "model"), reference=str(model_folder), tasks=[str(tmp_path / "toy.jsonl")], limit=30)
    assert row["tasks"] == found["tasks"] and row["tasks_mean"] == found["tasks_mean"]
    table = report([str(tmp_path / "out")], str(tmp_path / "page")).with_name("table.md").read_text()
    mean = row["tasks_mean"]
    low, high = mean["retained_interval"]
    assert "| accuracy retained ↑ | accuracy retained above chance ↑ |" in table
    shown = f"| {mean['accuracy'] / mean['reference_accuracy']:.0%} [{low:.0%}, {high:.0%}]"
    assert f"{shown} |" in table or f"{shown} ≈ |" in table  # where the other cell may be the better one by chance
    assert row["texts"]["evaluation"]["perplexity_ratio_interval"] is None  # there are two windows
    assert "A ratio without an interval is from too few" in (tmp_path / "page" / "report.html").read_text()
    for wrong, message in (({"tasks": "toy.jsonl"}, "tasks must be a list"), ({"limit": 0}, "limit is 0")):
        with pytest.raises(api.SubFitError, match=message):
            ablate(grid("bad.yaml", axes={"sparsity": [0.5]}, **wrong), str(tmp_path / "bad"))


def test_a_missing_text_is_refused_before_any_work(grid, tmp_path):
    for content in ({"texts": {"story": {"path": "story.txt"}}}, {"options": {"evaluation": {"path": "story.txt"}}}):
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"axes": {"seed": [0, 1]}, **content}))
        with pytest.raises(api.SubFitError, match=r"text file story\.txt does not exist"):
            ablate(str(tmp_path / "bad.yaml"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_shards_divide_the_cells(grid, tmp_path):
    path = grid(axes={"sparsity": [0.0, 0.25, 0.5]})
    one, _ = run(path, tmp_path / "out", "1/2")
    two, seen = run(path, tmp_path / "out", "2/2")
    assert [row["values"]["sparsity"] for row in one] == [0.0, 0.5] and [row["values"]["sparsity"] for row in two] == [0.25]
    assert [status for _, status in seen] == ["waiting", "running", "done"]
    with pytest.raises(api.SubFitError, match="shard is '3/2'; it must be i/n"):
        run(path, tmp_path / "out", "3/2")


def test_four_processes_of_which_one_is_killed_run_each_cell_once(grid, tmp_path):
    path = grid(axes={"scorer": ["rotation", "magnitude"], "sparsity": [0.25, 0.5], "seed": [0, 1, 2]})
    command = [sys.executable, "-m", "subfit.cli", "ablate", path, "--output", str(tmp_path / "out"), "--json"]
    processes = [start(command, tmp_path) for _ in range(4)]
    while not list((tmp_path / "out").glob("rows.jsonl")):
        assert any(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[0].send_signal(signal.SIGKILL)
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (stdout, stderr) in list(zip(processes, outputs, strict=True))[1:]:
        assert process.returncode == 0, stderr
        assert [row["status"] for row in json.loads(stdout)] == ["done"] * 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["cell"] for line in lines}) == 12
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 13


def test_from_the_command_line(subfit, grid, tmp_path):
    (tmp_path / "empty.json").write_text("{}")
    scorer = {"class_path": "file", "init_args": {"path": "empty.json"}}
    path = grid(axes={"scorer": ["rotation", scorer]})
    done = subfit("ablate", path, "--output", "out")
    assert done.returncode == 1, done.stderr
    assert "agreement" in done.stdout and "done" in done.stdout and "failed" in done.stdout
    assert "empty.json" in done.stderr and "Traceback" not in done.stderr
    other = subfit("ablate", grid("other.yaml", axes={"seed": [1]}), "--output", "out")
    assert (other.returncode, other.stdout) == (2, "") and "rows of another grid" in other.stderr
