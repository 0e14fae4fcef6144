"""`subfit compress --engine llama.cpp`: what llama.cpp cannot hold is refused before the work."""

import json

import pytest
from conftest import tiny_model
from exported import dense, tokenizer

from subfit.cli.main import main

QUICK = ["--calibration.windows", "2", "--calibration.length", "16", "--evaluation.windows", "0", "--engine", "llama.cpp"]


@pytest.fixture
def small(tmp_path):
    dense().save_pretrained(tmp_path / "small")
    tokenizer().save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_what_can_be_held_is_compressed_and_exported(small, text_file, tmp_path, capsys):
    output = tmp_path / "compressed"
    where = ["--model", str(small), "--calibration.path", str(text_file), "--output", str(output)]
    assert main(["compress", *where, *QUICK, "--attention_bypass", "low_rank", "--attention_bypass.rank", "3"]) == 0
    record = json.loads((output / "compression.json").read_text())
    assert record["configuration"]["engine"] == "llama.cpp"
    assert main(["export", str(output), str(tmp_path / "out.gguf")]) == 0
    assert "attention." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention_bypass", "linear", "--attention_bypass.reads", "stream"], "attention: its bypass reads the residual"),
        (
            [
                "--ffn_bypass",
                "mlp",
                "--ffn_bypass.activation",
                "gelu",
                "--ffn_bypass.hidden",
                "4",
                "--ffn_bypass.steps",
                "0",
            ],
            "ffn: its bypass is made of Linear and GELU",
        ),
    ],
)
def test_a_bypass_that_cannot_be_held_is_refused_before_anything_is_read(small, options, message, tmp_path, capsys):
    missing = ["--calibration.dataset", "not/here"]
    assert main(["compress", "--model", str(small), *missing, *QUICK, *options]) == 2
    assert f"not for llama.cpp: {message}" in capsys.readouterr().err


def test_a_family_that_cannot_be_held_is_refused(tmp_path, text_file, capsys):
    tiny_model("qwen3").save_pretrained(tmp_path / "other")
    tokenizer().save_pretrained(tmp_path / "other")
    assert main(["compress", "--model", str(tmp_path / "other"), "--calibration.path", str(text_file), *QUICK]) == 2
    assert "the family qwen3 has norms on queries and keys" in capsys.readouterr().err


def test_an_unknown_engine_is_refused(small, capsys):
    assert main(["compress", "--model", str(small), "--engine", "ollama"]) == 2
    assert "engine" in capsys.readouterr().err
