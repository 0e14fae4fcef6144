"""What the documents show is run: each page in a folder of its own, its blocks in their order, on a tiny model.

The model goes by the name of the embedded one, and windows are fewer and shorter where a page does not say how many. What
cannot be run here is in `INSTEAD`, with the reason, and is checked as far as it can be.
"""

import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from conftest import tiny_model, tiny_tokenizer
from documents import PAGES, ROOT, Block, blocks

from subfit.calibration.settings import Data, EvaluationData
from subfit.cli import export
from subfit.cli.main import main
from subfit.export.gguf_file import TYPES
from subfit.export.llama_engine import QUANTISED
from subfit.model.loading import EMBEDDED
from subfit.registry import finding

LESS = {  # the same work in less time
    "benchmark": "--prompt_lengths 32 --contexts 16 --batch_sizes 1 --new_tokens 4 --repeats 2 --warmup 1",
    "compress": "",
}
LESS_TRAINED = "--finetune.trainer.max_steps 2 --finetune.trainer.val_check_interval 1"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def smaller(monkeypatch, of: type, **defaults):
    """Gives a dataclass other defaults."""
    names = [name for name in inspect.signature(of).parameters]
    values = dict(zip(names, of.__init__.__defaults__, strict=True)) | defaults
    monkeypatch.setattr(of.__init__, "__defaults__", tuple(values.values()))
    for name, value in defaults.items():
        monkeypatch.setattr(of, name, value)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with what the pages take for granted."""
    folder = tmp_path_factory.mktemp("desk")
    model = tiny_model(num_hidden_layers=8, max_position_embeddings=2048)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for part in (model, tokenizer):
        part.save_pretrained(folder / "smollm2-135m")
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("results"))
    shutil.copy(folder / "smollm2-135m" / "config.json", folder / "experiments/benchmarks/speed/shapes/smollm2-135m.json")
    text = "".join(f"The square of {i} is {i * i}.\n" for i in range(600))
    (folder / "texts").mkdir()
    for name in ("valid.txt", "test.txt", "narrative.txt", "texts/one.txt", "texts/two.txt"):
        (folder / name).write_text(text)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"content": line}) + "\n" for line in text.splitlines()))
    items = [{"query": f"The square of {i} is", "choices": [f"{i * i}.", f"{i}."], "gold": 0} for i in range(2, 9)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, items)))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page, desk, tmp_path, monkeypatch):
    folder = shutil.copytree(desk, tmp_path / "folder")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(finding, "_plugins", [])
    monkeypatch.setenv("WANDB_MODE", "offline")
    smaller(monkeypatch, Data, windows=4, length=32)
    smaller(monkeypatch, EvaluationData, windows=1, length=32)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.language == "bash":
            for command in block.commands():
                run(command)
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        else:
            PARSED[block.language](block)


def run(command: str) -> None:
    """Runs a command of a page, or what stands for it here."""
    program = shlex.split(command)[0]
    for pattern, (_, instead) in INSTEAD.items():
        if re.search(pattern, command):
            instead(command)
            return
    assert program == "subfit", f"{program}: it is not known how to run it: {command}"
    subfit(command)


def subfit(command: str) -> None:
    command, _, target = command.partition(" > ")
    verb = shlex.split(command)[1]
    more = f"{LESS.get(verb, '')} {LESS_TRAINED if re.search('finetune|tuning|heal', command) else ''}"
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(shlex.split(f"{command} {more}")[1:]) == 0, command
    if target:
        Path(target.strip()).write_text(printed.getvalue())
    if "--json" in command:
        json.loads(printed.getvalue())


def inner(command: str) -> None:
    """Runs the part that begins with `subfit`, in this process alone."""
    subfit("subfit " + re.split(r"subfit(?:\.cli)? ", command, maxsplit=1)[1])


def configured(command: str) -> None:
    """Resolves the options of a compression, and stops there."""
    inner(f"{command} --print_config")


def installed(command: str) -> None:
    """Checks what is installed: this project with extras that it has, the embedded model, what is pinned, or all of that."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    lists = re.findall(r"--requirement (\S+)", command)
    if lists:  # test_installation.py compares them with the pinned versions
        assert all((ROOT / name).is_file() for name in lists) and "--require-hashes" in command
        return
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = shlex.split(command)[-1]
    own = re.fullmatch(r"\.(?:\[(\w+)\])?", wanted)
    if own:
        assert own[1] is None or own[1] in extras
    else:
        assert wanted in {*pinned, *(package.install.split()[-1] for package in EMBEDDED.values())}


def sweep_file(command: str) -> None:
    assert "command" in yaml.safe_load(Path(shlex.split(command)[-1]).read_text())


def dry_run(command: str) -> None:
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def exists(command: str) -> None:
    assert (ROOT / shlex.split(command)[1]).is_file()


def checkpoint(command: str) -> None:
    assert Path(re.search(r"pretrained=(\w+)", command)[1], "modeling_subfit.py").is_file()


def exported(command: str) -> None:
    """Reads the options of an export, of a model that is there."""
    given = export.parser().parse_args(shlex.split(command)[2:])
    assert Path(given.model).is_dir()
    assert given.type in ("auto", *TYPES, *QUANTISED)


def without_engine(command: str) -> None:
    """Runs a command as if for transformers."""
    subfit(re.sub(r"--engine \S+( --engine_python \S+)?", "--engine transformers", command))


INSTEAD: dict[str, tuple[str, Callable[[str], None]]] = {  # by pattern of the command: why, and what is done
    "^subfit export ": ("the tokenizer here is of words; test_llama_cpp.py writes files", exported),
    "--engine ": ("neither is installed here; test_llama_check.py and test_engine.py run it", without_engine),
    "^llama-": ("it is not installed here", lambda command: None),
    "^make ": ("they install and test everything", dry_run),
    "^pip ": ("test_installation.py installs", installed),
    "^pytest ": ("it is a test of its own", exists),
    "^lm_eval ": ("its tasks are data sets of the hub; test_lm_eval_harness.py runs one of its own", checkpoint),
    "^wandb sweep ": ("it needs a server; test_sweeps.py runs a cell of each file", sweep_file),
    "^wandb agent SWEEP$": ("it needs a server", lambda command: None),
    "^srun ": ("there is no SLURM here", inner),
    "^torchrun .*--fsdp": ("it needs several processes; test_processes.py starts them", configured),
    "^torchrun ": ("several processes take long to start; test_processes.py starts them", inner),
    "--calibration.dataset ": ("there is no hub here; test_data.py reads a data set of its own", configured),
    "--finetune.trainer.devices 2": ("several processes; test_trainer.py starts them", configured),
}


def sweep(block: Block) -> None:
    """Runs one cell of a sweep as an agent would."""
    content = yaml.safe_load(block.text)
    chosen = {name: p.get("values", [p.get("min")])[-1] for name, p in content["parameters"].items()}
    Path("args.json").write_text(json.dumps(chosen))
    subfit(shlex.join("args.json" if part == "${args_json_file}" else part for part in content["command"]))


PARSED: dict[str, Callable[[Block], object]] = {
    "text": lambda block: None,  # output: test_output.py
    "toml": lambda block: tomllib.loads(block.text),
    "yaml": sweep,
}
