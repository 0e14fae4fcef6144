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
import yaml
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.imports import RequirementCache

from subfit import api
from subfit.cli.main import main
from subfit.errors import SubFitError
from subfit.tracking.loggers import open_log
from subfit.tracking.records import SITES, site_rows

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
    assert table["data"] == [list(row) for row in site_rows(record)]
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
    assert rows == [list(SITES), *([str("" if value is None else value) for value in row] for row in site_rows(record))]
    metrics = csv.DictReader(Path("out.run/metrics.csv").read_text().splitlines())
    curve = [row["validation/kl"] for row in metrics if row["validation/kl"]]
    assert [float(value) for value in curve] == [point["kl"] for point in record["finetune"]["curve"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tensorbord", "unknown logger 'tensorbord'; use none, csv, mlflow, tensorboard, wandb, or class_path"),
        ("csv", "the logger csv writes beside the output folder; give one"),
        (["wandb", "tensorboard"], "the logger tensorboard writes beside the output folder"),
        ({"class_path": "lightning.pytorch.loggers.CSVLogger"}, "logger: .*save_dir"),
        ({"class_path": "lightning.pytorch.loggers.NoLogger", "init_args": {}}, "logger: .*NoLogger"),
        (3, "logger: "),
    ],
)
def test_a_logger_that_is_not_there_or_has_no_place_is_refused(given, message):
    with pytest.raises(SubFitError, match=message) as raised:
        open_log(given, {})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("given", ["mlflow", {"class_path": "lightning.pytorch.loggers.MLFlowLogger"}])
def test_a_logger_whose_package_is_missing_is_one_line_before_any_work(given, model_folder, text_file, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", RequirementCache("mlflow>=999"))
    monkeypatch.setattr(api, "model_of", None)  # not called
    with pytest.raises(SubFitError, match="mlflow") as raised:
        compress(model_folder, text_file, logger=["none", given], output=None)
    assert "\n" not in str(raised.value)


class Memory(Logger):
    """Remembers what it is given."""

    def __init__(self, full_disk: bool = False):
        super().__init__()
        self.full_disk, self.configuration, self.metrics, self.statuses = full_disk, None, {}, []

    name, version = "memory", 0

    def log_hyperparams(self, params, *args, **kwargs):
        self.configuration = params

    def log_metrics(self, metrics, step=None):
        if self.full_disk:
            raise OSError(28, os.strerror(28))
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append((step, value))

    def finalize(self, status):
        self.statuses.append(status)


def test_several_loggers_get_the_same_of_one_run(offline, model_folder, text_file):
    """CSV files, an offline run of W&B, and any other Logger."""
    memory = Memory()
    record = compress(model_folder, text_file, logger=["csv", "wandb", memory]).record
    configuration, curve = record["configuration"], [point["kl"] for point in record["finetune"]["curve"]]
    assert memory.configuration == configuration and memory.statuses == ["success"]
    assert [value for _, value in memory.metrics["validation/kl"]] == curve
    assert memory.metrics["evaluation.perplexity_ratio"][0][1] == record["evaluation"]["perplexity_ratio"]
    assert memory.metrics["size.after.parameters"] == [(record["finetune"]["step"], record["size"]["after"]["parameters"])]
    rows = list(csv.DictReader(Path("out.run/metrics.csv").read_text().splitlines()))
    assert [float(row["validation/kl"]) for row in rows if row["validation/kl"]] == curve
    assert float(rows[-1]["evaluation.kl"]) == record["evaluation"]["kl"]
    assert yaml.safe_load(Path("out.run/hparams.yaml").read_text()) == configuration
    found = logged(offline)
    assert [row["validation/kl"] for row in found["history"] if "validation/kl" in row] == curve
    assert found["summary"]["size"] == record["size"]


def events(folder: Path) -> list:
    """The events in the TensorBoard files of a folder: records of length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            found.append(Event.FromString(data[position + 12 : position + 12 + length]))
            position += length + 16
    return [value for event in found for value in event.summary.value]


def test_tensorboard_has_curves_measurements_table_and_picture(model_folder, text_file, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    record = compress(model_folder, text_file, logger="tensorboard").record
    found = events(Path("out.run"))
    kl = [value.simple_value for value in found if value.tag == "validation/kl"]
    assert kl == pytest.approx([point["kl"] for point in record["finetune"]["curve"]])
    (ratio,) = [value.simple_value for value in found if value.tag == "evaluation.perplexity_ratio"]
    assert ratio == pytest.approx(record["evaluation"]["perplexity_ratio"])
    (picture,) = [value.image for value in found if value.tag == "scores"]
    assert picture.width > 500 and len(picture.encoded_image_string) > 1000
    (text,) = [value.tensor.string_val[0].decode() for value in found if value.tag.startswith("sites")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == list(SITES) and lines[2:] == [[str(cell) for cell in row] for row in site_rows(record)]
    assert yaml.safe_load(Path("out.run/hparams.yaml").read_text())["model"] == str(model_folder)


def test_a_logger_by_its_class_path_from_the_command_line(model_folder, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "own", "name": "", "version": ""}}
    options = f"compress --model {model_folder} --calibration.path {text_file} --calibration.windows 4 --output out --json"
    assert main([*options.split(), "--logger", json.dumps([own, "csv"])]) == 0
    record = json.loads(capsys.readouterr().out)
    tables = [list(csv.reader((tmp_path / folder / "sites.csv").read_text().splitlines())) for folder in ("own", "out.run")]
    assert tables[0] == tables[1] and len(tables[0]) == 1 + len(record["scores"])
    first, second = record["configuration"]["logger"]
    assert first["class_path"] == own["class_path"] and first["init_args"].items() >= own["init_args"].items()
    assert second == "csv"


def test_what_a_logger_cannot_log_loses_no_run(model_folder, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = compress(model_folder, text_file, logger=Memory(full_disk=True)).record
    assert "No space left" in record["finetune"]["stopped"] and (tmp_path / "out" / "compression.json").is_file()
    assert "Memory has failed: [Errno 28] No space left" in capsys.readouterr().err


def test_a_run_of_wandb_is_ended_if_another_logger_cannot_be_made(offline):
    with pytest.raises(SubFitError, match="save_dir"):
        open_log(["wandb", {"class_path": "lightning.pytorch.loggers.CSVLogger"}], {})
    assert not list(offline.glob("wandb/offline-run-*"))  # what is wrong was seen first

    class Unreachable(Memory):
        def log_hyperparams(self, params, *args, **kwargs):
            raise ConnectionError("no such server")

    with pytest.raises(SubFitError, match="the logger Unreachable cannot be made: no such server"):
        open_log(["wandb", Unreachable()], {})
    (path,) = offline.glob("wandb/offline-run-*/*.wandb")
    wandb.teardown()
    assert [r.exit.exit_code for r in records(path) if r.WhichOneof("record_type") == "exit"] == [1]


def test_wandb_and_lightning_are_imported_only_when_asked_for():
    code = "import subfit.api, subfit.cli.compress, sys; assert not {'wandb', 'lightning'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
