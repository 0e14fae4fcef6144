import subprocess
from pathlib import Path

import torch
import transformers

from subfit.tracking import provenance as module
from subfit.tracking.provenance import code_commit, provenance


def checkout(folder):
    """A git checkout that the package might run from."""
    (folder / "subfit" / "tracking").mkdir(parents=True)
    (folder / "subfit" / "__init__.py").write_text("")

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    git("add", "subfit")
    git("commit", "-m", "x")
    return git


def commit_of(package, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(package / "tracking" / "provenance.py"))
    code_commit.cache_clear()
    return code_commit()


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path, monkeypatch):
    git = checkout(tmp_path / "repository")
    package = tmp_path / "repository" / "subfit"
    assert commit_of(package, monkeypatch) == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "repository" / "notes.txt").write_text("not code")
    assert commit_of(package, monkeypatch)["dirty"] is False
    (package / "new.py").write_text("")
    assert commit_of(package, monkeypatch)["dirty"] is True


def test_without_a_checkout_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    checkout(tmp_path / "repository")
    installed = tmp_path / "repository" / "venv" / "site-packages" / "subfit"  # in somebody's checkout, not of it
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit_of(installed, monkeypatch) is None
    assert commit_of(tmp_path, monkeypatch) is None
    monkeypatch.setenv("PATH", str(Path("/nowhere")))
    assert commit_of(tmp_path / "repository" / "subfit", monkeypatch) is None


def test_what_a_record_says(monkeypatch):
    monkeypatch.undo()
    code_commit.cache_clear()
    found = provenance()
    assert found["format_version"] == 2 and found["versions"]["transformers"] == transformers.__version__


def test_the_processor_and_what_is_said_of_several(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 9000\nprocessor\t: 1\nmodel name\t: Fast 9000\n")
    monkeypatch.setattr(module, "CPUS", tmp_path / "cpuinfo")
    module.processor.cache_clear()
    assert module.processor() == f"Fast 9000, {torch.backends.cpu.get_cpu_capability()}" == provenance()["processor"]
    monkeypatch.setattr(module, "CPUS", tmp_path / "gone")
    module.processor.cache_clear()
    assert module.processor().endswith(torch.backends.cpu.get_cpu_capability())
    module.processor.cache_clear()
    assert module.differing(["a", None, "a", [1]]) == ""
    assert module.differing(["a", "b", "a"]).endswith("may differ in their last digits: a; b")
