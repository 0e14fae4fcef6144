"""`make demo` as its user runs it, but for the installation, on a tiny model."""

import json
import re
import subprocess
import sys
from pathlib import Path

from conftest import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]


def test_the_demo_shows_quality_text_and_speed(tmp_path):
    tiny_model(num_hidden_layers=8, max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / ".runs").touch()  # as if it were installed
    given = {"VENV": tmp_path, "BIN": Path(sys.executable).parent, "MODEL": tmp_path / "model", "DEMO": tmp_path / "demo"}
    command = ["make", "demo", *(f"{name}={value}" for name, value in given.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    for part in ("1 of 3: compress", "2 of 3: compare", "samples", "manual", "top-1 agreement", "The capital of France is"):
        assert part in shown, shown
    assert re.search(r"calibration domain +in +out\n", shown), shown  # samples, and the manual of Python
    assert re.search(r"speed\n(.*\n)*prefill 512\b(.*\n)*decode 1 x 512\b", shown), shown
    pictures = re.findall(r"\S+\.png", shown.split("That was SubFit")[1])
    assert len(pictures) == 2 and all(Path(path.rstrip(";:")).is_file() for path in pictures)
    assert json.loads((tmp_path / "demo/speed/benchmark.json").read_text())["decoding"]
