"""Relative paths, wherever they are given, are relative to the folder that the command runs in."""

import json
import re

import pytest
import yaml

from subfit.ablation.grid import read_grid
from subfit.cli.main import main
from subfit.config import configuration, resolve
from subfit.errors import SubFitError

SCORER = "from subfit.scorer import Scorer\nclass Mine(Scorer):\n    def score(self, calibration):\n        return {}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Configurations in a folder, which name files that lie in the current folder, and others that lie beside them."""
    here, inside = tmp_path, tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(here)
    for name in ("here.txt", "inside/beside.txt"):
        (here / name).write_text("a text\n")
    for name in ("here.jsonl", "inside/beside.jsonl"):
        (here / name).write_text(json.dumps({"context": "a", "continuation": "b"}) + "\n")
    for name in ("here.py", "inside/beside.py"):
        (here / name).write_text(SCORER)
    for name in ("here.yaml", "inside/beside.yaml"):
        (here / name).write_text("sparsity: 0.5\n")
    return here


def grid(**content):
    with open("inside/grid.yaml", "w") as file:
        yaml.safe_dump({"axes": {"seed": [1, 2]}, **content}, file)
    return read_grid("inside/grid.yaml", allow_code=True)


GRIDS = {  # what names a file, given its name without the suffix
    "base": lambda name: grid(base=f"{name}.yaml").cells,
    "config of a label": lambda name: grid(axes={"which": {"it": {"config": f"{name}.yaml"}, "none": {}}}).cells,
    "config of a cell": lambda name: grid(cells=[{"config": f"{name}.yaml", "seed": 3}]).cells,
    "plug-in": lambda name: grid(options={"scorer": f"{name}.py"}).cells,
    "calibration": lambda name: grid(options={"calibration": {"path": f"{name}.txt"}}).check_files(),
    "evaluation": lambda name: grid(options={"evaluation": {"path": [f"{name}.txt"]}}).check_files(),
    "texts": lambda name: grid(texts={"story": {"path": f"{name}.txt"}}).check_files(),
    "tasks": lambda name: grid(tasks=[f"{name}.jsonl"]).check_files(),
}


@pytest.mark.parametrize("what", GRIDS)
def test_in_a_grid(what):
    GRIDS[what]("here")
    with pytest.raises(SubFitError) as caught:
        GRIDS[what]("beside")
    said = str(caught.value)
    assert "paths are relative to the folder that the command runs in" in said and "\n" not in said
    if what != "plug-in":  # a strategy does not know what names it
        assert re.search(r"; there is inside/beside\.\w+: give this path", said)


def test_in_a_configuration_and_in_a_record(folder):
    for name, content in (
        ("a.yaml", "calibration: {path: NAME}"),
        ("compression.json", '{"configuration": {"calibration": {"path": "NAME"}}}'),
    ):
        (folder / "inside" / name).write_text(content.replace("NAME", "here.txt"))
        resolve(f"inside/{name}").check_files()
        (folder / "inside" / name).write_text(content.replace("NAME", "beside.txt"))
        with pytest.raises(
            SubFitError, match="text file beside.txt does not exist .*; there is inside/beside.txt: give this"
        ):
            resolve(f"inside/{name}").check_files()


def test_of_a_strategys_own_file(folder):
    (folder / "scores.json").write_text("{}")
    (folder / "inside" / "a.yaml").write_text("scorer: {class_path: file, init_args: {path: scores.json}}")
    assert resolve("inside/a.yaml").recipe.scorer.path == "scores.json"
    with pytest.raises(SubFitError, match="file: the file of scores gone.json does not exist .paths are relative"):
        resolve("inside/a.yaml", {"scorer.path": "gone.json"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "--config", "gone.yaml"],
        ["compress", "--plugins", "gone.py"],
        ["compress", "--scorer", "gone.py"],
        ["compress", "--model", "{model}", "--calibration.path", "gone.txt"],
        ["compress", "--model", "{model}", "--resume", "gone.ckpt"],
        ["evaluate", "nowhere", "--data", "gone.txt"],
        ["evaluate", "nowhere", "--tasks", "gone.jsonl"],
        ["benchmark", "--config", "gone.yaml"],
        ["ablate", "gone.yaml", "--output", "out"],
    ],
    ids=" ".join,
)
def test_on_the_command_line_before_a_model_is_loaded(arguments, model_folder, capsys):
    assert main([argument.replace("{model}", str(model_folder)) for argument in arguments]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert re.search(r"gone\.\w+ does not exist \(paths are relative to the folder that the command runs in, /.*\)", line)


def test_a_configuration_by_name_by_path_and_by_folder(folder):
    best, puzzle = (configuration(resolve(name)) for name in ("best", "puzzle"))
    for name in ("best.yaml", "experiments/best", "experiments/best.yaml"):
        assert configuration(resolve(name)) == best
    for name in ("puzzle.yaml", "baselines/puzzle", "experiments/baselines/puzzle.yaml"):
        assert configuration(resolve(name)) == puzzle
    (folder / "best.yaml").write_text("sparsity: 0.125")  # a path is a file where there is one
    assert resolve("best.yaml").recipe.sparsity == 0.125 and resolve("best").recipe.sparsity == best["sparsity"]
    (folder / "inside" / "compression.json").write_text(json.dumps({"configuration": {"sparsity": 0.375}}))
    assert resolve("inside").recipe.sparsity == resolve("inside/").recipe.sparsity == 0.375
    for name, message in (
        ("other/best.yaml", "other/best.yaml does not exist .*; did you mean|presets are best, "),
        ("baselines/best", "baselines/best does not exist .*presets are"),
        (".", "cannot read the configuration .: it is a folder without compression.json"),
        ("puzzel", "no preset and no file 'puzzel'; did you mean 'puzzle'"),
        ("puzzel.yaml", "puzzel.yaml does not exist .*; did you mean 'puzzle'"),
    ):
        with pytest.raises(SubFitError, match=message):
            resolve(name)
