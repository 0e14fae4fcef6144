"""Prompts and sampled texts of `subfit evaluate`, as its user runs it."""

import json

import pytest
from conftest import tiny_model

import subfit as package
from subfit.cli.main import main


@pytest.fixture(scope="module")
def compressed_folder(model_folder, tmp_path_factory):
    """A model that was calibrated on samples of itself."""
    folder = tmp_path_factory.mktemp("models") / "compressed"
    size = {"windows": 4, "length": 32}
    package.compress(str(model_folder), calibration=size, evaluation={"windows": 1}, sparsity=0.5, output=folder)
    return folder


def test_samples_a_file_and_prompts_in_one_command(subfit, model_folder, compressed_folder, text_file):
    texts = ["--data", "samples=self", f"file={text_file}", "--windows", 3, "--length", 32, "--stride", 16]
    asked = ["evaluate", compressed_folder, "--reference", model_folder, *texts, "--prompts", "One, two,", "a"]
    done = subfit(*asked, "--new_tokens", 7, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    samples, file = found["texts"]["samples"], found["texts"]["file"]
    assert samples["in_domain"] is True and samples["tokens"] == 3 * 31  # disjoint: each begins where its text begins
    assert file["in_domain"] is False and file["tokens"] == 31 + 2 * 16
    assert [entry["prompt"] for entry in found["generations"]] == ["One, two,", "a"]
    assert all(0 <= e["equal_tokens"] <= e["tokens"] <= 7 and e["reference_text"] for e in found["generations"])
    assert set(found["seconds"]) == {"load", "prompts", "texts", "probes", "tasks"}
    assert "continuing prompts: " in done.stderr
    again = package.evaluate(str(compressed_folder), reference=str(model_folder), prompts=["One, two,", "a"], new_tokens=7)
    assert again["generations"] == found["generations"] and again["texts"] == {}


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_texts_are_folded_to_the_width(model_folder, compressed_folder, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    arguments = ["evaluate", str(compressed_folder), "--reference", str(model_folder), "--new_tokens", "30"]
    assert main([*arguments, "--prompts", "[bold]The squares of 1, 2 and 3[/] are\n1, 4,"]) == 0
    shown = capsys.readouterr().out
    assert "greedy continuations" in shown and "[bold]" in shown and "perplexity" not in shown
    assert "…" not in shown and " of 30" in shown
    (entry,) = package.evaluate(str(compressed_folder), prompts="[bold]The squares of 1, 2 and 3[/] are\n1, 4,")[
        "generations"
    ]
    assert set(entry) == {"prompt", "text", "tokens"}


def test_prompts_alone_measure_nothing_else(model_folder, capsys):
    assert main(["evaluate", str(model_folder), "--prompts", "abc", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"] == {} and found["tasks"] == {} and len(found["generations"]) == 1
    assert found["parameters"] == sum(p.numel() for p in tiny_model().parameters())


def test_a_prompt_that_cannot_be_continued_is_one_line(model_folder, capsys):
    assert main(["evaluate", str(model_folder), "--prompts", "abc", "--new_tokens", "999"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "it must fit into the model's context of 256" in shown.err.splitlines()[-1]
