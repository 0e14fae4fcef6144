"""A file of Python that a configuration names does not run unless the user says so; what is typed in has been said."""

import json

import pytest
import yaml

import subfit
from subfit.ablation.grid import read_grid
from subfit.cli.main import main
from subfit.config import resolve
from subfit.errors import SubFitError
from subfit.registry import finding

PLUGIN = """
from pathlib import Path
from subfit.scorer import Scorer

Path("has-run").write_text("")

class Mine(Scorer):
    '''Nothing.'''

    def score(self, calibration):
        return {}

def loss(batch):
    return 0.0
"""
ASKS = r"names code that would run, mine.py: if you trust it, give --plugins mine.py, or --allow_code"
NAMED = [
    {"scorer": "mine.py"},
    {"scorer": {"class_path": "mine.py:Mine"}},
    {"scorer": {"class_path": "rank_fusion", "init_args": {"scorers": ["magnitude", "mine.py"]}}},
    {"finetune": {"losses": {"mine.py:loss": 0.5}}},
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finding, "_plugins", [])
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


@pytest.mark.parametrize("options", NAMED, ids=str)
def test_a_configuration_that_names_a_file_asks(options, folder, capsys):
    (folder / "run.yaml").write_text(yaml.safe_dump(options))
    (folder / "compression.json").write_text(json.dumps({"configuration": options}))
    (folder / "grid.yaml").write_text(yaml.safe_dump({"options": options, "axes": {"seed": [1, 2]}}))
    (folder / "base.yaml").write_text(yaml.safe_dump({"base": "run.yaml", "axes": {"seed": [1, 2]}}))
    (folder / "labels.yaml").write_text(yaml.safe_dump({"axes": {"label": {"one": {"config": "run.yaml"}}}}))
    for source in ("run.yaml", "compression.json"):
        with pytest.raises(SubFitError, match=f"{source} {ASKS}"):
            resolve(source)
        with pytest.raises(SubFitError, match=ASKS):
            subfit.compress(config=source)
        assert main(["compress", "--config", source, "--print_config"]) == 2
        assert "names code that would run" in capsys.readouterr().err
    for grid in ("grid.yaml", "base.yaml", "labels.yaml"):
        with pytest.raises(SubFitError, match=ASKS):
            read_grid(grid)
        assert main(["ablate", grid, "--output", "runs"]) == 2
    assert not (folder / "has-run").exists() and not (folder / "runs").exists()


def test_what_the_user_says_may_run(folder, capsys):
    (folder / "run.yaml").write_text(yaml.safe_dump({"scorer": "mine.py"}))
    (folder / "grid.yaml").write_text(yaml.safe_dump({"axes": {"scorer": ["mine.py", "magnitude"]}}))
    assert main(["compress", "--config", "run.yaml", "--allow_code", "--print_config"]) == 0
    assert (folder / "has-run").exists()
    assert len(read_grid("grid.yaml", allow_code=True).cells) == 2
    assert type(resolve("run.yaml", allow_code=True).recipe.scorer).__name__ == "Mine"
    assert type(resolve({"scorer": "mine.py"}).recipe.scorer).__name__ == "Mine"  # a mapping is the user's own
    assert main(["compress", "--scorer", "mine.py", "--print_config"]) == 0  # and so is what is typed in
    assert main(["compress", "--config", "run.yaml", "--print_config"]) == 2
    assert main(["compress", "--config", "run.yaml", "--plugins", "mine.py", "--print_config"]) == 0
    assert len(read_grid("grid.yaml").cells) == 2


def test_a_file_that_is_not_there_is_named_as_before(folder):
    (folder / "run.yaml").write_text(yaml.safe_dump({"scorer": "gone.py"}))
    with pytest.raises(SubFitError, match="plug-in file gone.py does not exist"):
        resolve("run.yaml")
