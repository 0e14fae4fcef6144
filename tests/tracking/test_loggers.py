"""What a run logs, read back from the files."""

import csv
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from subfit import api
from subfit.cli.main import main
from subfit.errors import SubFitError
from subfit.tracking.loggers import open_log
from subfit.tracking.records import SITES, sites

BLOCK, HEADER = 32768, 7  # of LevelDB's log format, in which W&B keeps a run


def records(path: Path) -> list:
    """The records of an offline run's file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, piece, found = path.read_bytes(), HEADER, b"", []
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        piece += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(piece))
            piece = b""
    return found


def insert(into: dict, items) -> None:
    """Adds what a record says has changed."""
    for item in items:
        *path, last = item.nested_key or [item.key]
        inside = into
        for part in path:
            inside = inside.setdefault(part, {})
        inside[last] = json.loads(item.value_json)


def logged(folder: Path) -> dict:
    """Configuration, summary, history and run of the only offline run in a folder."""
    wandb.teardown()  # W&B's own process may still be writing the file
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    result: dict = {"config": {}, "summary": {}, "history": [], "files": path.parent / "files", "bytes": path.read_bytes()}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            result["run"] = record.run
            insert(result["config"], record.run.config.update)
        elif kind in ("config", "summary"):
            insert(result[kind], getattr(record, kind).update)
        elif kind == "history":
            items = record.history.item
            result["history"].append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return result


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No login, no network: W&B keeps its runs in a folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


def compress(model_folder, text_file, **given):
    data = {"path": str(text_file), "windows": 12, "length": 32}
    finetune = {"trainer": {"max_steps": 4, "val_check_interval": 2}, "learning_rate": 1e-4}
    own = {
        "model": str(model_folder),
        "calibration": data,
        "evaluation": {"windows": 2},
        "finetune": finetune,
        "output": "out",
    }
    return api.compress(**own | given)


def test_an_offline_run_holds_what_the_record_holds(offline, model_folder, text_file, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_of_mine")
    compress(model_folder, text_file, logger="wandb", log_checkpoint=True)
    assert "there is no login; the run is logged offline" in capsys.readouterr().err
    record = json.loads((offline / "out" / "compression.json").read_text())
    found = logged(offline)
    config = {key: value for key, value in found["config"].items() if key != "_wandb"}
    assert config == record["configuration"]
    assert set(found["run"].tags) >= {"scorer:subfit", "selector:per_type", "attention_bypass:low_rank"}
    for key in (
        "selected",
        "explained_variance",
        "size",
        "evaluation",
        "seconds",
        "finetune",
        "versions",
        "calibration_tokens",
    ):
        assert found["summary"][key] == record[key], key
    table = json.loads((found["files"] / found["summary"]["sites"]["path"]).read_text())
    assert table["columns"] == list(SITES)
    assert table["data"] == [list(row) for row in sites(record)]
    assert {row[0]: row[3] for row in table["data"]} == record["scores"]
    assert (found["files"] / found["summary"]["scores"]["path"]).stat().st_size > 1000
    training = [row["training/loss"] for row in found["history"] if "training/loss" in row]
    validation = [row["validation/kl"] for row in found["history"] if "validation/kl" in row]
    curve = record["finetune"]["curve"]
    assert len(training) == 4 and validation == [point["kl"] for point in curve]
    assert sum(training[:2]) / 2 == pytest.approx(curve[1]["training_loss"])
    assert b"hf_a_secret_of_mine" not in found["bytes"]


def test_the_settings_of_wandb_hold_and_an_unreachable_server_stops_nothing(
    offline, model_folder, text_file, monkeypatch, capsys
):
    secret = "a" * 40
    settings = {
        "BASE_URL": "http://127.0.0.1:9",
        "API_KEY": secret,
        "INIT_TIMEOUT": "1",
        "PROJECT": "mine",
        "RUN_GROUP": "ours",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    compress(model_folder, text_file, logger="wandb", finetune=None, output=None)
    assert capsys.readouterr().err.count("the run is logged offline") == 1
    found = logged(offline)
    assert (found["run"].project, found["run"].run_group) == ("mine", "ours")
    assert secret.encode() not in found["bytes"]


def test_a_run_that_fails_is_marked_as_failed(offline):
    with pytest.raises(ZeroDivisionError), open_log("wandb", {"scorer": "kl"}, group="grid") as log:
        assert log.folder is None
        raise ZeroDivisionError
    found = logged(offline)
    assert found["run"].run_group == "grid" and list(found["run"].tags) == ["scorer:kl"]
    (path,) = offline.glob("wandb/offline-run-*/*.wandb")
    assert [r.exit.exit_code for r in records(path) if r.WhichOneof("record_type") == "exit"] == [1]


def test_an_ablation_can_be_one_run_with_a_row_for_each_cell(offline, model_folder, text_file, capsys):
    options = {"model": str(model_folder), "calibration": {"path": str(text_file), "windows": 4, "length": 16}}
    options["evaluation"] = {"windows": 1}
    Path("grid.yaml").write_text(json.dumps({"options": options, "axes": {"scorer": ["rotation", "magnitude"]}}))
    assert main(["ablate", "grid.yaml", "--output", "cells", "--wandb", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = logged(offline)
    assert found["run"].display_name == "cells"
    table = json.loads((found["files"] / found["summary"]["cells"]["path"]).read_text())
    for row, line, step in zip(rows, table["data"], found["history"], strict=False):
        cells = dict(zip(table["columns"], line, strict=True))
        assert cells["scorer"] == step["scorer"] == row["values"]["scorer"]
        for shown in (cells, step):
            assert shown["texts.evaluation.perplexity_ratio"] == row["texts"]["evaluation"]["perplexity_ratio"]
            assert shown["size.after.parameters"] == row["size"]["after"]["parameters"]
    assert len(table["data"]) == 2


def test_csv_files_hold_what_the_record_holds(tmp_path, model_folder, text_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = compress(model_folder, text_file, logger="csv").record
    rows = list(csv.reader(Path("out.run/sites.csv").read_text().splitlines()))
    assert rows == [list(SITES), *([str("" if value is None else value) for value in row] for row in sites(record))]
    metrics = csv.DictReader(Path("out.run/metrics.csv").read_text().splitlines())
    curve = [row["validation/kl"] for row in metrics if row["validation/kl"]]
    assert [float(value) for value in curve] == [point["kl"] for point in record["finetune"]["curve"]]


def test_a_logger_that_is_not_there_or_has_no_place_is_refused():
    with pytest.raises(SubFitError, match="unknown logger 'tensorboard'; use none, csv or wandb"):
        open_log("tensorboard", {})
    with pytest.raises(SubFitError, match="beside the output folder"):
        open_log("csv", {})


def test_wandb_and_lightning_are_imported_only_when_asked_for():
    code = "import subfit.api, subfit.cli.compress, sys; assert not {'wandb', 'lightning'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
