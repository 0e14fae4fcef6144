"""`.gguf` files are de-quantised once; what comes from the cache is what the file holds."""

import shutil
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import tiny_tokens
from forked import start
from gguf import GGMLQuantizationType, GGUFWriter, quants

from subfit.model import gguf_cache
from subfit.model.loading import load

WIDTH, INNER, LAYERS, VOCABULARY = 32, 64, 2, 128


def write_gguf(path, kind=GGMLQuantizationType.Q8_0, seed=0, output=None):
    """Writes a tiny Llama with a tokenizer of single bytes; its output matrix may be of another type."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        [chr(33 + i) for i in range(94)] + ["<s>", "</s>", "!!"] + [f"<{i}>" for i in range(VOCABULARY - 97)]
    )
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(94)
    writer.add_eos_token_id(95)
    random = np.random.default_rng(seed)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH)}
    shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH)}
    shapes |= {"ffn_down": (WIDTH, INNER)}
    named = {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    for name, shape in {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH), **named}.items():
        value = random.normal(size=shape).astype(np.float32) / 4
        own = output if output is not None and name == "output" else kind
        writer.add_tensor(f"{name}.weight", quants.quantize(value, own), raw_dtype=own)
    for name in ("output_norm", *(f"blk.{i}.{norm}" for i in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", random.uniform(0.5, 1.5, WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def conversions(monkeypatch):
    """How often a file was converted."""
    convert, counted = gguf_cache._convert, []

    def counting(*arguments):
        counted.append(arguments)
        return convert(*arguments)

    monkeypatch.setattr(gguf_cache, "_convert", counting)
    return counted


def entry_of(folder):
    (entry,) = (path for path in (folder / "cache" / "subfit" / "gguf").iterdir() if path.is_dir())
    return entry


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens(2, 8)).logits


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_second_load_equals_the_first_and_the_file_without_converting_it(file, conversions, dtype):
    direct, tokenizer = gguf_cache._convert(file, getattr(torch, dtype))
    conversions.clear()
    for _ in range(2):
        model, found = load(str(file), dtype=dtype, device="cpu")
        assert len(conversions) == 1
        assert model.config._name_or_path == str(file)
        assert all(torch.equal(value, direct.state_dict()[name]) for name, value in model.state_dict().items())
        assert found("A!B<3>")["input_ids"] == tokenizer("A!B<3>")["input_ids"]
        assert (found.bos_token_id, found.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert torch.equal(logits(model), logits(direct))


@pytest.mark.parametrize(
    ("kind", "output", "dtype"),
    [
        ("Q8_0", "Q8_0", torch.bfloat16),
        ("Q8_0", "F32", torch.bfloat16),
        ("F16", "F16", torch.float16),
        ("F32", "F32", torch.float32),
        ("BF16", "BF16", torch.bfloat16),
        ("F16", "F32", torch.float32),
        ("BF16", "F16", torch.float32),
    ],
)
def test_the_own_type_of_a_file_holds_its_matrices(tmp_path, kind, output, dtype):
    kinds = GGMLQuantizationType
    assert gguf_cache._own_dtype(write_gguf(tmp_path / "a.gguf", kinds[kind], output=kinds[output])) == dtype


def test_another_content_under_the_same_name_is_another_entry(file, conversions):
    before = logits(load(str(file), dtype="float32")[0])
    write_gguf(file, seed=1)
    assert not torch.equal(logits(load(str(file), dtype="float32")[0]), before)
    assert len(conversions) == 2


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "no digests"])
def test_a_damaged_entry_is_made_again(file, conversions, tmp_path, damage):
    expected = logits(load(str(file), dtype="float32")[0])
    entry = entry_of(tmp_path)
    weights = entry / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    if damage == "missing":
        weights.unlink()
    elif damage == "no digests":
        (entry / gguf_cache.DIGESTS).unlink()
    else:
        weights.write_bytes(content if damage == "changed" else content[:-9])
    for _ in range(2):
        assert torch.equal(logits(load(str(file), dtype="float32")[0]), expected)
    assert len(conversions) == 2


def test_a_cache_that_cannot_be_written_is_no_error(file, conversions, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    assert load(str(file))[0].config.hidden_size == WIDTH and len(conversions) == 1


def test_an_entry_that_can_only_be_read_is_used(file, conversions, monkeypatch):
    expected = logits(load(str(file), dtype="float32")[0])
    monkeypatch.setattr(gguf_cache.FileLock, "acquire", lambda self: pytest.fail("nothing is to be written"))
    assert torch.equal(logits(load(str(file), dtype="float32")[0]), expected) and len(conversions) == 1


def test_what_a_killed_process_has_left_is_removed(file, tmp_path):
    load(str(file))
    entry = entry_of(tmp_path)
    left = entry.rename(entry.with_name(f".{entry.name}.partial-killed"))
    load(str(file))
    assert entry.is_dir() and not left.exists()


def test_a_full_disk_is_no_error_and_said(file, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    assert load(str(file))[0].config.hidden_size == WIDTH
    assert "it is not kept: the disk of" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_processes_that_load_a_file_at_once_convert_it_once(file, tmp_path):
    code = f"""
    from subfit.model.loading import load
    print(float(load({str(file)!r}, dtype="float32")[0].lm_head.weight.sum()))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    outputs = [process.communicate(timeout=600) for process in [start(command, tmp_path) for _ in range(3)]]
    assert len({stdout for stdout, _ in outputs}) == 1 and outputs[0][0]
    assert sum("is de-quantised once" in stderr for _, stderr in outputs) == 1
    assert sorted(path.name for path in entry_of(tmp_path).parent.iterdir() if path.is_dir()) == [entry_of(tmp_path).name]
