"""The examples in the help of every command are run, on a tiny model that goes by the name of the embedded one."""

import json
import shlex

import pytest
from conftest import tiny_model
from exported import TOKENS, tokenizer

from subfit.cli import ablate, benchmark, compress, evaluate, export, push, report
from subfit.cli import list as list_
from subfit.cli.main import COMMANDS, main
from subfit.export import hub

MODULES = (compress, evaluate, benchmark, ablate, report, export, push, list_)
EXAMPLES = [example for module in MODULES for example in module.EXAMPLES]
LESS = {
    "compress": "--calibration.windows 4 --calibration.length 32 --evaluation.windows 1",
    "evaluate": "--windows 2 --length 32",
    "benchmark": "--prompt_lengths 32 --contexts 16 --batch_sizes 1 --new_tokens 4 --repeats 2 --warmup 1",
}
STAGES = ("loading", "reading", "scoring", "selecting", "fitting", "evaluating", "writing", "timing", "[1/2]", "[2/2]")
LESS_TRIED = "--selector.length 16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    tiny_model(num_hidden_layers=8, vocab_size=TOKENS).save_pretrained(folder / "smollm2-135m")
    tokenizer().save_pretrained(folder / "smollm2-135m")
    (folder / "smollm2-135m" / "config.json").rename(folder / "config.json")
    (folder / "smollm2-135m" / "config.json").write_text((folder / "config.json").read_text())
    for name in ("valid.txt", "test.txt", "narrative.txt"):
        (folder / name).write_text("".join(f"The square of {i} is {i * i}.\n" for i in range(400)))
    rows = [{"query": f"The square of {i} is", "choices": [f"{i * i}.", f"{i}."], "gold": 0} for i in range(2, 9)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"calibration": {"path": "valid.txt", "windows": 4, "length": 32}, "evaluation": {"windows": 1}}
    for name in ("runs", "more-runs"):
        grid = {"options": {"model": "smollm2-135m", **options}, "axes": {"seed": [0, len(name)]}}
        (folder / f"{name}.yaml").write_text(json.dumps(grid))
    (folder / "grid.yaml").write_text((folder / "runs.yaml").read_text())
    return folder


def test_every_example_of_every_help(folder, monkeypatch, capsys):
    """In their order, so that what one writes is there for the next."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(hub, "push", lambda *given: "https://hub/commit")  # test_hub.py has a hub
    assert main(["ablate", "more-runs.yaml", "--output", "more-runs"]) == 0
    verbs = set()
    for example in EXAMPLES:
        program, verb, *_ = shlex.split(example)
        command = f"{example} {LESS.get(verb, '')} {LESS_TRIED if 'config best' in example else ''}"
        assert program == "subfit" and main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
        verbs.add(verb)
        shown = capsys.readouterr().out
        if "--json" in example:
            json.loads(shown)
    assert verbs == set(COMMANDS)


def test_the_examples_end_each_help(capsys):
    for verb in COMMANDS:
        try:
            assert main([verb, "--help"]) == 0
        except SystemExit as left:  # as argparse does
            assert left.code == 0
        ending = capsys.readouterr().out.partition("Examples:\n")[2].splitlines()
        assert ending and all(line.startswith("  subfit ") and line.strip() in EXAMPLES for line in ending)


def test_json_alone_is_on_stdout_for_every_command(folder, subfit, monkeypatch, tmp_path):
    """In processes of their own, where all that libraries print would be seen."""
    data = ["--calibration.path", folder / "valid.txt", *LESS["compress"].split()]
    model = folder / "smollm2-135m"
    grid = json.loads((folder / "runs.yaml").read_text())
    grid["options"]["calibration"]["path"], grid["options"]["model"] = str(folder / "valid.txt"), str(model)
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    commands = {
        "compress": ["--model", model, *data, "--output", "one"],
        "evaluate": ["one", "--reference", model, "--data", folder / "test.txt", *LESS["evaluate"].split()],
        "benchmark": ["one", "--reference", model, *LESS["benchmark"].split()],
        "ablate": ["grid.yaml", "--output", "runs"],
        "report": ["runs"],
        "export": ["one", "one.gguf"],
        "list": [],
    }
    assert commands.keys() == COMMANDS.keys() - {"push"}  # see test_hub.py
    found = {}
    for verb, arguments in commands.items():
        done = subfit(verb, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        found[verb] = json.loads(done.stdout)
        assert "\x1b" not in done.stderr and "\r" not in done.stderr
        for line in done.stderr.splitlines():
            assert line.startswith(STAGES), line
    assert (tmp_path / found["report"]["page"]).is_file() and len(found["ablate"]) == 2
    printed = subfit("compress", "--config", "one/compression.json", "--print_config", "--json")
    assert json.loads(printed.stdout) == found["compress"]["configuration"]
