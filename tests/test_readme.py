"""What the README shows is run: every command, and the Python."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml
from conftest import tiny_model, tiny_tokenizer

from subfit.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.replace("\\\n", " ").splitlines() if line]
LESS = {  # the same work on fewer and shorter windows
    "compress": "--calibration.windows 4 --calibration.length 32 --evaluation.windows 1",
    "evaluate": "--windows 2 --length 32 --stride 16",
    "benchmark": "--prompt_lengths 32 --contexts 16 --batch_sizes 1 --new_tokens 4 --repeats 2 --warmup 1",
    "list": "",
    "ablate": "",
    "report": "",
}


LESS_TRIED = "--scorer.length 16 --selector.length 16 --selector.rounds 2 --selector.pool 1.2"

LESS_TRAINED = "--finetune.trainer.max_steps 2"


def test_every_command_in_their_order(tmp_path, monkeypatch):
    """On a tiny model, which goes by the name of the embedded one, in one process, which imports once."""
    monkeypatch.chdir(tmp_path)
    tiny_model(num_hidden_layers=8).save_pretrained(tmp_path / "smollm2-135m")
    tiny_tokenizer().save_pretrained(tmp_path / "smollm2-135m")
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    for name in ("valid.txt", "test.txt", "narrative.txt"):
        (tmp_path / name).write_text("".join(f"The square of {i} is {i * i}.\n" for i in range(400)))
    rows = [{"query": f"The square of {i} is", "choices": [f"{i * i}.", f"{i}."], "gold": 0} for i in range(2, 9)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (grid,) = (yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml")
    grid["options"] |= {"calibration": {"path": "valid.txt", "windows": 4, "length": 32}}
    grid["options"]["evaluation"]["windows"] = grid["texts"]["narrative"]["windows"] = 1
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    ran = []
    for command in COMMANDS:
        program, verb, *_ = shlex.split(command)
        if program == "make":
            subprocess.run([program, "--dry-run", verb], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        else:
            assert program == "subfit"
            fewer = f"{LESS_TRIED if 'config best' in command else ''} {LESS_TRAINED if '--finetune' in command else ''}"
            assert main(shlex.split(f"{command} {LESS[verb]} {fewer}")[1:]) == 0, command
        ran.append((program, verb))
    assert {("make", "demo"), ("make", "test"), *(("subfit", verb) for verb in LESS)} <= set(ran)
    assert (tmp_path / "page" / "report.html").stat().st_size > 10_000


def test_the_python_shown(tmp_path, model_folder, text_file, monkeypatch):
    code = "\n".join(text for kind, text in BLOCKS if kind == "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "valid.txt").write_text(text_file.read_text())
    code = code.replace("smollm2-135m", str(model_folder)).replace('"windows": 64', '"windows": 4, "length": 32')
    assert "subfit.compress(" in code and "subfit.load(" in code
    exec(compile(code, "README.md", "exec"), {})
