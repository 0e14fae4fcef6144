"""Commands that are interrupted, terminated or killed at any moment, the last milliseconds included.

The suite has 30 moments. `make kills` has 200, of the seed that it prints; KILLS and KILLS_SEED set both.
"""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_model, tiny_tokenizer, without_minutes
from interrupting import BEGUN, Ended, Moment, run
from terminals import HIDE_CURSOR, SHOW_CURSOR

KILLS = int(os.environ.get("KILLS", "30"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SAID = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (128 + signal.SIGTERM, "terminated")}
DATA = "--calibration.path text.txt --calibration.windows 20 --calibration.length 16 --evaluation.windows 2"
BYPASS = " ".join(f"--{kind}_bypass linear --{kind}_bypass.ridge 100" for kind in ("attention", "ffn"))  # too much, so that
COMPRESS = f"compress --model dense {DATA} --sparsity 0.5 {BYPASS} --output model"  # a fine-tuning has something to gain
FINETUNE = f"{COMPRESS} --finetune.trainer.max_steps 12 --finetune.trainer.val_check_interval 3"
ABLATE = "ablate grid.yaml --output runs"
GRID = {
    "options": {
        "model": "dense",
        "calibration": {"path": "text.txt", "windows": 6, "length": 16},
        "evaluation": {"windows": 2},
    },
    "axes": {"sparsity": [0.25, 0.5], "scorer": ["magnitude", "rotation"]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with the input of the commands."""
    folder = tmp_path_factory.mktemp("kills") / "world"
    tiny_model(num_hidden_layers=2).save_pretrained(folder / "dense")
    tiny_tokenizer().save_pretrained(folder / "dense")
    (folder / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(99)))
    (folder / "grid.yaml").write_text(json.dumps(GRID))
    return folder


def in_world(world: Path, folder: Path) -> Path:
    """Returns a folder with the same input."""
    folder.mkdir()
    for path in world.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


class Whole:
    """What a command does that nobody interrupts.

    Attributes:
        folder: where it has run.
        seconds: how long it took.
    """

    def __init__(self, command: str, world: Path, folder: Path):
        self.folder = in_world(world, folder)
        ended = run(command.split(), self.folder)
        assert ended.code == 0, ended.shown
        self.seconds = ended.seconds

    def weights(self) -> bytes:
        return (self.folder / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> dict[str, Whole]:
    folder = tmp_path_factory.mktemp("whole")
    lines = {"compress": COMPRESS, "finetune": FINETUNE, "ablate": ABLATE}
    return {name: Whole(line, world, folder / name) for name, line in lines.items()}


def moments(command: str, seconds: float, *patterns: str) -> Iterator[tuple[Moment, bool]]:
    """Yields moments of a command's, each with whether stderr is a terminal: at any time, or just after there is a file."""
    for number in range(KILLS // 3):
        rng = random.Random(f"{SEED} {command} {number}")
        after = rng.choice([BEGUN, BEGUN, *patterns])
        delay = rng.uniform(0, 1.05 * seconds) if after == BEGUN else rng.choice([0.002, 0.02, 0.1]) * rng.random()
        yield Moment(SIGNALS[number % 3], delay, after), rng.random() < 0.5


def check_end(ended: Ended, moment: Moment, command: str, terminal: bool) -> None:
    """Checks the exit code, the message and the terminal of a command that was sent a signal."""
    assert "Traceback" not in ended.shown and "Exception ignored" not in ended.shown, ended.shown
    if moment.number == signal.SIGKILL:
        assert ended.code in (0, -signal.SIGKILL)
        return
    if ended.code:  # else it had done its work
        code, word = SAID[moment.number]
        last = ended.shown.strip().splitlines()[-1]
        assert ended.code == code and re.search(rf"subfit( {command})?: {word}; \w.*", last), (ended, moment)
    if terminal:
        assert ended.shown.rfind(SHOW_CURSOR) >= ended.shown.rfind(HIDE_CURSOR)


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.is_symlink()} - {BEGUN}


def weights_of(folder: Path) -> bytes | None:
    """The weights of the model in a folder, which is complete; None if there is none."""
    if not folder.exists():
        return None
    assert {"config.json", "compression.json", "README.md", "scores.png", "tokenizer.json"} <= files_of(folder)
    assert json.loads((folder / "compression.json").read_text())["size"]
    return (folder / "model.safetensors").read_bytes()


def check_output(folder: Path, ended: Ended, moment: Moment) -> bytes | None:
    """Checks what a compression has left, and that it does not say otherwise; returns the weights, if there are any."""
    found = weights_of(folder / "model")
    assert found or ended.code
    assert (found is None) == ("nothing was written" in ended.shown) or ended.code in (0, -signal.SIGKILL), ended.shown
    hidden = {name for name in files_of(folder) if name not in ("model", "model.run")}
    assert not hidden if moment.number != signal.SIGKILL else all(name.startswith(".model.partial-") for name in hidden)
    return found


def test_a_compression_is_whole_or_not_there(world, whole, tmp_path):
    reference = whole["compress"]
    for number, (moment, terminal) in enumerate(moments("compress", reference.seconds, "model", ".model.partial-*/model/*")):
        folder = in_world(world, tmp_path / str(number))
        ended = run(COMPRESS.split(), folder, moment, terminal)
        check_end(ended, moment, "compress", terminal)
        assert check_output(folder, ended, moment) in (None, reference.weights())


def test_a_fine_tuning_goes_on_to_the_same_weights(world, whole, tmp_path):
    reference, fitted = whole["finetune"].weights(), whole["compress"].weights()
    tuned = json.loads((whole["finetune"].folder / "model/compression.json").read_text())["finetune"]
    assert tuned["kept"] == "fine-tuned" and tuned["kl_after"] < 0.9 * tuned["kl_before"] and tuned["step"] == 12
    state = "model.run/last.ckpt"
    for number, (moment, terminal) in enumerate(moments("finetune", whole["finetune"].seconds, "model", state, state)):
        folder = in_world(world, tmp_path / str(number))
        ended = run(FINETUNE.split(), folder, moment, terminal)
        check_end(ended, moment, "compress", terminal)
        found = check_output(folder, ended, moment)
        assert found in (None, reference, fitted)
        if found == reference:
            continue
        resumed = ["--resume", state] if (folder / state).exists() else []
        if not resumed:
            shutil.rmtree(folder / "model", ignore_errors=True)
        again = run([*FINETUNE.split(), *resumed], folder)
        assert again.code == 0, again.shown
        assert weights_of(folder / "model") == reference, (moment, resumed)
        record = json.loads((folder / "model/compression.json").read_text())["finetune"]
        assert without_minutes(record)["curve"] == without_minutes(tuned)["curve"] and record["kept"] == "fine-tuned"


def rows_of(folder: Path) -> list[str]:
    """The lines of an ablation's rows that are whole."""
    path = folder / "runs/rows.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def measured(lines: list[str]) -> list[dict]:
    """What the rows of cells say that does not depend on when they were run, sorted by cell."""
    rows = sorted(map(json.loads, lines), key=lambda row: row["cell"])
    return [{key: row[key] for key in ("cell", "status", "scores", "selected", "texts", "size")} for row in rows]


def test_finished_cells_are_kept_and_not_run_twice(world, whole, tmp_path):
    expected = measured(rows_of(whole["ablate"].folder))
    assert len(expected) == 4
    patterns = ("runs/rows.jsonl", "runs/results.csv")
    for number, (moment, terminal) in enumerate(moments("ablate", whole["ablate"].seconds, *patterns)):
        folder = in_world(world, tmp_path / str(number))
        ended = run(ABLATE.split(), folder, moment, terminal)
        check_end(ended, moment, "ablate", terminal)
        kept = rows_of(folder)
        assert not kept or "nothing was written" not in ended.shown
        assert len(kept) == 4 or ended.code
        assert run(ABLATE.split(), folder).code == 0
        lines = rows_of(folder)
        assert lines[: len(kept)] == kept and measured(lines) == expected
        assert (folder / "runs/results.csv").read_text().count("\n") == 5
