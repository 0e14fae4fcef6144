"""Files for llama.cpp, opened by llama.cpp: tiny models."""

import json
import shlex
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import names_of
from exported import BYPASSES, PLACES, compressed, dense, spec, tokenizer
from tokenizers_of import TEXT, byte_level, sentence_piece

from subfit.cli.main import main
from subfit.export.gguf_file import write_gguf
from subfit.export.llama_cpp import prepare
from subfit.export.llama_engine import PLAIN, Engine
from subfit.export.pre_tokenizers import KNOWN, PROBES
from subfit.model.sizes import kv_bytes_per_token

pytest.importorskip("llama_cpp", reason="run by `make test-serving`")

SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokens():
    return tokenizer()


def written(model, tokenizer, folder: Path, kind: str = "f32") -> Path:
    path = folder / "model.gguf"
    write_gguf(path, *prepare(model, tokenizer), {"general.name": "tiny"}, kind)
    return path


def check_exact(model, path: Path) -> None:
    """Equal greedy tokens, logits within 1e-3, and no cache for what was replaced."""
    text = torch.arange(5, 105)
    with Engine(path, 256, **PLAIN) as engine, torch.no_grad():
        logits = model(text[None]).logits[0].numpy()
        assert np.abs(engine.logits(text.tolist()) - logits).max() < 1e-3
        prompt = text[:10][None]
        mask, options = torch.ones_like(prompt), {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
        generated = model.generate(prompt, attention_mask=mask, eos_token_id=None, **options)[0, 10:]
        assert engine.generate(prompt[0].tolist(), 32) == generated.tolist()
        held, needed = engine.cache_bytes(), sum(kv_bytes_per_token(model))
        one = 2 * 4 * model.config.hidden_size // model.config.num_attention_heads  # in a model without any other
        assert 0 <= held - (needed or one) < 32


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bypass", BYPASSES)
def test_every_bypass_is_exact_wherever_it_stands(bypass, place, family, tokens, tmp_path):
    model = compressed(family, PLACES[place], spec(bypass))
    check_exact(model, written(model, tokens, tmp_path))


@pytest.mark.parametrize("bypass", ["low_rank", "linear"])
def test_fused_weights_are_exact(bypass, tokens, tmp_path):
    model = compressed("phi3", names_of(0, 2), spec(bypass))
    check_exact(model, written(model, tokens, tmp_path))


def test_kept_neurons_are_exact(tokens, tmp_path):
    kept = {"class_path": "kept_neurons", "init_args": {"share": 0.5}}
    model = compressed("llama", ["attention.1", "ffn.1", "ffn.2"], spec("low_rank"), kept)
    check_exact(model, written(model, tokens, tmp_path))


def test_scaled_rotary_embeddings_and_biases_are_exact(tokens, tmp_path):
    model = compressed("llama", names_of(1), spec("low_rank"), rope_parameters=SCALED, attention_bias=True, mlp_bias=True)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    check_exact(model, written(model, tokens, tmp_path))


def test_partly_rotated_heads_are_exact(tokens, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    model = compressed("phi3", names_of(1), spec("low_rank"), rope_parameters=rope)
    check_exact(model, written(model, tokens, tmp_path))


def test_several_sequences_do_not_see_each_other(tokens, tmp_path):
    model = compressed("llama", names_of(1), spec("low_rank"))
    texts = torch.randint(3, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    with Engine(written(model, tokens, tmp_path), 64, sequences=3, **PLAIN) as engine, torch.no_grad():
        first = engine.read(texts[:, :12].numpy(), 0)
        then = engine.read(texts[:, 12:].numpy(), 12, every=True)
        logits = model(texts).logits.numpy()
    assert np.abs(first[:, 0] - logits[:, 11]).max() < 1e-3
    assert np.abs(then - logits[:, 12:]).max() < 1e-3


@pytest.mark.parametrize("name", [*(known.name for known in KNOWN), "sentence piece"])
def test_texts_have_equal_tokens(name, tmp_path):
    known = next((known for known in KNOWN if known.name == name), None)
    made = byte_level(known.make(), known.ignore_merges, bos=name == "llama-bpe") if known else sentence_piece(400)
    with Engine(written(dense(), made, tmp_path), 64) as engine:
        for text in (*PROBES, TEXT):
            normal = unicodedata.normalize("NFC", text)
            assert engine.tokenize(normal, special=True) == made(normal)["input_ids"]
        turn = made.apply_chat_template([{"role": "user", "content": "Well?"}], tokenize=False)
        assert engine.tokenize(turn, special=True)[-3:] == made(turn)["input_ids"][-3:]


def test_both_models_are_timed_in_llama_cpp(tokens, tmp_path, capsys):
    for name, model in (("dense", dense()), ("small", compressed("llama", ["attention.1", "ffn.2"], spec("low_rank")))):
        model.save_pretrained(tmp_path / name)
        tokens.save_pretrained(tmp_path / name)
    sizes = shlex.split("--prompt_lengths 32 --contexts 16 --batch_sizes 1 3 --new_tokens 4 --repeats 2 --warmup 1 --json")
    models = [str(tmp_path / "small"), "--reference", str(tmp_path / "dense")]
    assert main(["benchmark", *models, "--engine", "llama.cpp", *sizes]) == 0
    result = json.loads(capsys.readouterr().out)
    cache = {key: its["bytes_per_token"] for key, its in result["engine"]["cache"].items()}
    assert cache["compressed"] / cache["dense"] == pytest.approx(3 / 4, rel=0.02)
    assert [entry["batch_size"] for entry in result["decoding"]] == [1, 3]
    assert all(entry["speedup"]["measured"] > 0 for entry in (*result["prefill"], *result["decoding"]))
