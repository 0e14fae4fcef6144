"""`subfit export` as its user runs it, without llama.cpp."""

import json

import numpy as np
import pytest
import torch
from conftest import names_of, tiny_tokenizer
from exported import compressed, dense, spec, tokenizer
from gguf import GGUFReader
from gguf.quants import dequantize

from subfit.cli.main import main
from subfit.export import llama_cpp
from subfit.export.llama_family import plan_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a compressed model."""
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    compressed("llama", names_of(1), spec("low_rank")).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# small\n")
    (folder / "compression.json").write_text(json.dumps({"configuration": {"model": "the/base"}}))
    return folder


def contents(path) -> dict:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def test_a_file_holds_the_plan_and_says_what_it_is(checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint), str(tmp_path / "small.gguf"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["replaced"] == names_of(1)
    assert result["type"] == "f32"
    assert result["verification"] is None
    found = contents(tmp_path / "small.gguf")
    assert found["general.architecture"] == "deci"
    assert found["general.name"] == "small"
    assert found["general.base_model.0.name"] == "the/base"
    assert found["general.license"] == "apache-2.0"
    assert found["subfit.replaced"] == names_of(1)
    assert found["deci.block_count"] == result["layers"] == 5
    assert found["deci.attention.head_count_kv"] == [2, 0, 0, 2, 2]
    assert found["deci.attention.head_count"] == [4, 0, 0, 4, 4]
    assert found["deci.feed_forward_length"] == [48, 32, 32, 48, 48]
    assert result["kv_bytes_per_token"] == 3 * 2 * 2 * 32 * 2  # layers, keys and values, heads, sizes, bytes
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert len(found["tokenizer.ggml.tokens"]) == 400


@pytest.mark.parametrize(("kind", "error"), [("f32", 0), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2)])
def test_tensors_are_written_in_the_type_that_is_asked_for(checkpoint, tmp_path, kind, error):
    path = tmp_path / "small.gguf"
    assert main(["export", str(checkpoint), str(path), "--type", kind]) == 0
    model = compressed("llama", names_of(1), spec("low_rank"))
    wanted = dict(plan_of(model).tensors())
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        tensor = tensors[name]
        fits = kind != "q8_0" or value.shape[-1] % 32 == 0  # into its blocks
        assert tensor.tensor_type.name == ("F32" if value.ndim == 1 else kind.upper() if fits else "F16")
        read = dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        assert np.abs(read - value.float().numpy()).max() <= error * max(float(value.abs().max()), 1)


def test_a_dense_model_is_exported_too(tmp_path, capsys):
    dense("qwen2").to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    tokenizer().save_pretrained(tmp_path / "dense")
    assert main(["export", str(tmp_path / "dense"), str(tmp_path / "dense.gguf"), "--type", "bf16"]) == 0
    assert "replaced: nothing" in capsys.readouterr().out
    found = contents(tmp_path / "dense.gguf")
    assert "subfit.replaced" not in found
    assert found["deci.attention.head_count_kv"] == [2] * 4


def test_a_shorter_context_is_told(tmp_path, capsys):
    dense("mistral", sliding_window=64).save_pretrained(tmp_path / "dense")
    tokenizer().save_pretrained(tmp_path / "dense")
    assert main(["export", str(tmp_path / "dense"), str(tmp_path / "dense.gguf")]) == 0
    assert "note: the file is for contexts of up to 64 tokens" in capsys.readouterr().err
    assert contents(tmp_path / "dense.gguf")["deci.context_length"] == 64


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("out.bin", [], "must end in .gguf"),
        ("missing/out.gguf", [], "its folder is not there"),
        ("taken.gguf", [], "exists; give a new name"),
        ("out.gguf", ["--type", "q9"], "unknown type 'q9' of a GGUF file; use one of auto, f32"),
        ("out.gguf", ["--type", "q4_k_m"], "the type q4_k_m needs llama.cpp: pip install llama-cpp-python"),
        ("out.gguf", ["--verify"], "verify needs llama.cpp"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, output, options, message):
    monkeypatch.setattr("subfit.export.llama_engine.find_spec", lambda name: None)
    (tmp_path / "taken.gguf").touch()
    assert main(["export", str(checkpoint), str(tmp_path / output), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.gguf"]


def test_nothing_is_written_where_llama_cpp_cannot_hold_the_model(tmp_path, capsys):
    compressed("llama", ["attention.2"], {"class_path": "scalar", "init_args": {"reads": "stream"}}).save_pretrained(
        tmp_path / "model"
    )
    tokenizer().save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out.gguf")]) == 2
    assert "not for llama.cpp: attention.2: its bypass reads the residual stream" in capsys.readouterr().err
    dense().save_pretrained(tmp_path / "words")
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    assert main(["export", str(tmp_path / "words"), str(tmp_path / "out.gguf")]) == 2
    assert "the tokenizer is WordLevel" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out.gguf*"))


def test_a_failed_writing_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    def fail(path, *args):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(llama_cpp, "write_gguf", fail)
    assert main(["export", str(checkpoint), str(tmp_path / "out.gguf")]) == 2
    assert "no space left on device; nothing was left there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
