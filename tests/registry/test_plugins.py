"""Strategies from outside: files, dotted paths, installed packages; and what bad ones are told."""

import json
import os
import shlex

import pytest
from documents import ROOT, blocks

from subfit.cli.main import main
from subfit.registry import finding

PAGE = ROOT / "docs" / "add-a-scorer.md"
SHOWN = next(block.text for block in blocks(PAGE) if block.file == "largest_update.py")
SMALL = ["--calibration.windows", 4, "--calibration.length", 16, "--evaluation.windows", 0]

STRATEGY = {
    "scorer": """
from subfit.scorer import Scorer
class Mine(Scorer):
    def score(self, calibration):
        return {site: float(site.layer) for site in calibration.sites}
""",
    "selector": """
from subfit.selector import Selector
class Mine(Selector):
    def select(self, scores, budget, calibration):
        return [site for site in scores if site.layer == 3]
""",
    "attention_bypass": """
from subfit.bypass import Bypass
from torch import nn
class Mine(Bypass):
    def fit(self, branch, moments, shared):
        return nn.Linear(branch.site.width, branch.site.width)
""",
}


def test_the_scorer_that_the_documentation_shows(subfit, tmp_path, model_folder, text_file, monkeypatch, capsys):
    (tmp_path / "my_scorer.py").write_text(SHOWN)
    given = ["--plugins", "my_scorer.py", "--scorer", "my_scorer"]
    common = ["--model", model_folder, "--calibration.path", text_file, *SMALL]
    done = subfit("compress", *given, *common, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["scores"]) == 8 and len(set(record["scores"].values())) == 8
    (tmp_path / "again.yaml").write_text(json.dumps(record["configuration"]))  # needs no --plugins
    again = subfit("compress", "--config", "again.yaml", "--allow_code", "--json")
    assert json.loads(again.stdout)["scores"] == record["scores"], again.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finding, "_plugins", [])
    assert main(["list", "scorers", "--plugins=my_scorer.py", "--json"]) == 0
    assert "my_scorer" in [entry["name"] for entry in json.loads(capsys.readouterr().out)["scorers"]]


def test_a_dotted_path_and_an_installed_package(subfit, tmp_path, model_folder, text_file, monkeypatch, capsys):
    installed = tmp_path / "site-packages"
    (installed / "hers-1.0.dist-info").mkdir(parents=True)
    (installed / "hers.py").write_text("".join(STRATEGY.values()).replace("class Mine(Sel", "class Chosen(Sel"))
    (installed / "hers-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hers\nVersion: 1.0\n")
    entry_points = "[subfit.selectors]\nlast_layer = hers:Chosen\n"
    (installed / "hers-1.0.dist-info" / "entry_points.txt").write_text(entry_points)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    common = ["--model", model_folder, "--calibration.path", text_file, *SMALL]
    done = subfit("compress", "--selector", "last_layer", *common, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["selected"] == ["attention.3", "ffn.3"]
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr(finding, "_entry_points", finding._entry_points.__wrapped__)  # which remembers
    assert main(["compress", "--selector", "hers.Chosen", *map(str, common), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selected"] == ["attention.3", "ffn.3"]
    assert main(["list", "selectors", "--json"]) == 0
    assert "last_layer" in [entry["name"] for entry in json.loads(capsys.readouterr().out)["selectors"]]


BAD = {
    "an import that fails": ("scorer", "import subfit", "import no_such_thing", 2, "No module named 'no_such_thing'"),
    "a syntax error": ("scorer", "class Mine(Scorer):", "class Mine(Scorer:", 3, "SyntaxError"),
    "a missing method": ("scorer", "def score", "def scores", 3, "Mine lacks the method score"),
    "a missing fit": ("attention_bypass", "def fit", "def fits", 4, "Mine lacks the method fit"),
    "an error while scoring": ("scorer", "float(site.layer)", "1 / site.layer", 5, "ZeroDivisionError"),
    "a NaN": ("scorer", "float(site.layer)", "float('nan')", 4, "gives nan for attention.0"),
    "no mapping": ("scorer", "return {", "return 1 or {", 4, "gives None for attention.0"),
    "an unknown site": ("selector", "return [", "return ['ffn.77'] or [", 4, "returns 'ffn.77'; it must choose among"),
    "no list": ("selector", "return [", "return 7 or [", 4, "returns 7; it must choose among"),
    "an error while selecting": ("selector", "site.layer == 3", "site.depth == 3", 5, "AttributeError"),
    "a wrong shape": ("attention_bypass", "branch.site.width)", "branch.site.width - 1)", 5, "maps (2, 32) to (2, 31)"),
    "no module": ("attention_bypass", "return nn", "return 5 or nn", 5, "must return a module, not int"),
    "an error while fitting": ("attention_bypass", "return nn", "return moments.z or nn", 6, "AttributeError"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory, model_folder, text_file):
    """What the command line says to each bad plug-in: (exit code, stderr); all in one process."""
    import contextlib
    import io

    folder, found = tmp_path_factory.mktemp("plugins"), {}
    for index, (case, (option, old, new, _, _)) in enumerate(BAD.items()):
        code = STRATEGY[option]
        code = code.replace(old, new) if old in code else f"\n{new}{code}"
        path = folder / f"bad_{index}.py"
        path.write_text(code)
        given = ["--model", str(model_folder), "--calibration.path", str(text_file), *map(str, SMALL)]
        with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
            found[case] = main(["compress", *given, f"--{option}", str(path)]), stderr.getvalue(), path
    return found


@pytest.mark.parametrize("case", BAD)
def test_a_bad_plugin_is_one_line_that_names_its_file_and_line(case, answers):
    code, stderr, path = answers[case]
    message = stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert code == 2 and message.startswith("subfit compress: error: ")
    assert f"{path}:{BAD[case][3]}" in message and BAD[case][4] in message


def test_a_file_without_strategies_and_a_missing_one(tmp_path, capsys):
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "torn.py").write_text("class Torn(Scorer:\n")
    (tmp_path / "lacking.py").write_text("import no_such_thing\n" + STRATEGY["scorer"])
    for name, message in (
        ("empty.py", "defines no Scorer, Selector, Substitute"),
        ("gone.py", "gone.py does not exist"),
        ("torn.py", "torn.py cannot be imported: SyntaxError"),
        ("lacking.py", "lacking.py cannot be imported: there is no module 'no_such_thing'"),
    ):
        assert main(["list", "--plugins", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


MODULE = """
from subfit.bypass import Bypass
from torch import nn
class Twice(nn.Module):
    def forward(self, x):
        return 2 * x
class Mine(Bypass):
    def fit(self, branch, moments, shared):
        return Twice()
"""


@pytest.mark.parametrize("source", [STRATEGY["attention_bypass"], MODULE])
def test_the_commands_to_run_next_run_as_they_are_printed(tmp_path, model_folder, text_file, capsys, source):
    (tmp_path / "mine.py").write_text(source)
    size = ["--calibration.path", text_file, *SMALL, "--output", tmp_path / "out"]
    bypass = ["--model", model_folder, "--attention_bypass", tmp_path / "mine.py"]
    assert main([*map(str, ["compress", *bypass, *size])]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  subfit evaluate"))
    assert command.endswith("--trust_remote_code") == (source == MODULE)
    assert main([*shlex.split(command)[1:], "--prompts", "One", "--new_tokens", "2"]) == 0
