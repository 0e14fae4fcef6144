"""Tables at several widths, printed by the command line: nothing is cut, and nothing is wider than the terminal."""

import json

import pytest
from conftest import tiny_model, tiny_tokenizer

from subfit.cli.main import main

LONG = "a-text-with-a-name-that-is-longer-than-a-narrow-terminal-is-wide-by-some-characters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    tiny_model().save_pretrained(folder / "dense")
    tiny_tokenizer().save_pretrained(folder / "dense")
    (folder / "text.txt").write_text("".join(f"The square of {i} is {i * i}.\n" for i in range(400)))
    return folder


def shown(folder, monkeypatch, capsys, width, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    assert main([str(argument) for argument in arguments]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    return text


@pytest.mark.parametrize("width", [30, 60, 80, 200, None])
def test_compress(folder, monkeypatch, capsys, width):
    data = ["--calibration.path", "text.txt", "--calibration.windows", 4, "--calibration.length", 32]
    output = ["--output", f"compressed-{width}"] if width != 80 else []
    text = shown(
        folder, monkeypatch, capsys, width, "compress", "--model", "dense", *data, "--evaluation.windows", 1, *output
    )
    table, _, rest = text.partition("\n\n")
    for name in (
        "parameters",
        "KV cache, bytes per token",
        "MFLOP per token",
        "perplexity",
        "top-1 agreement",
        "KL divergence",
    ):
        assert name in table
    assert ("─" in table) == (width != 30)  # lines of values instead of a table
    if width and width != 30:
        assert all(len(line) <= width for line in table.splitlines()[:-1])
    assert "replaced: attention." in rest and "time: load " in rest and "(2 of 8 submodules)" in rest
    if output:
        assert f"\n  subfit evaluate compressed-{width} --reference dense\n" in rest
    else:
        assert "not saved; --output FOLDER saves the model" in rest


@pytest.mark.parametrize("width", [60, 80, 200, None])
def test_evaluate(folder, monkeypatch, capsys, width):
    (folder / "toy.jsonl").write_text(json.dumps({"query": "a", "choices": ["b", "c"], "gold": 0}))
    texts = ["--data", f"{LONG}=text.txt", "b=text.txt", "--windows", 10, "--length", 16, "--tasks", "toy.jsonl"]
    text = shown(folder, monkeypatch, capsys, width, "evaluate", "dense", "--reference", "dense", *texts)
    for name in (LONG, "reference's perplexity", "KL divergence, nats", "above chance", "1.000 [1.000, 1.000]"):
        assert name in text.replace("\n", "") if name == LONG else name in text
    if width:
        assert all(len(line) <= width for line in text.partition("\n\n")[0].splitlines()[:-1])


def test_brackets_in_a_name_are_shown(folder, monkeypatch, capsys):
    (folder / "[toy].jsonl").write_text(json.dumps({"query": "a", "choices": ["b", "c"], "gold": 0}))
    assert "[toy]" in shown(folder, monkeypatch, capsys, None, "evaluate", "dense", "--tasks", "[toy].jsonl")


@pytest.mark.parametrize("width", [60, None])
def test_benchmark(folder, monkeypatch, capsys, width):
    work = ["--prompt_lengths", 8, "--contexts", 8, "--batch_sizes", 1, "--new_tokens", 2, "--repeats", 2, "--warmup", 0]
    models = ["dense", "--reference", "dense", "--calibration_windows", 2, "--calibration_length", 16]
    text = shown(folder, monkeypatch, capsys, width, "benchmark", *models, *work)
    for name in ("prefill 8: MFLOP per token", "decode 1 x 8: peak memory, MiB", "speed-up", "forward passes", "saved"):
        assert name in text
