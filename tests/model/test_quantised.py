"""A checkpoint whose weights are quantised is compressed, and those that are kept are saved as they came."""

import importlib.util
import json
import re

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, tiny_tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CompressedTensorsConfig

import subfit
from subfit.calibration.settings import EvaluationData
from subfit.cli.main import main
from subfit.errors import SubFitError
from subfit.model.quantised import is_quantised

METHODS = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors"}  # and what is imported
GROUP = 32
ROUNDING = 0.05  # of bfloat16 in all layers; bitsandbytes sums in another order than a dense layer
SELECTED = ["attention.1", "ffn.1", "ffn.3"]
SECTION = {  # of compressed-tensors, 4 bits for each group of 32 weights
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP},
        }
    },
}


def dense(folder, **changes):
    size = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False}
    tiny_model("llama", **size | changes).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def add_section(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": SECTION | changes}))


def packed(weight):
    """What compressed-tensors stores for a weight: eight numbers of 4 bits in each int32, the first in the lowest bits."""
    rows = weight.float().view(len(weight), -1, GROUP)
    scale = (rows.abs().amax(-1) / 7.5).to(torch.bfloat16)
    numbers = (rows / scale.float()[..., None]).round().clamp(-8, 7).view(weight.shape).long() + 8
    joined = (numbers.view(len(weight), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    stored = torch.where(joined >= 2**31, joined - 2**32, joined).to(torch.int32)
    return {"weight_packed": stored, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}


def quantised(folder, method):
    """The folder of a tiny model whose linear layers are quantised by a method, but for the head."""
    source = dense(folder / "dense")
    if method == "bitsandbytes":
        section = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        AutoModelForCausalLM.from_pretrained(source, quantization_config=section).save_pretrained(folder / method)
        tiny_tokenizer().save_pretrained(folder / method)
        return folder / method
    weights = load_file(source / "model.safetensors")
    for name in [name for name in weights if "proj" in name]:
        path = name.removesuffix(".weight")
        weights |= {f"{path}.{part}": value for part, value in packed(weights.pop(name)).items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    add_section(source)
    return source


def compressed(folder, output=None, **given):
    data = {"calibration": {"source": "repeated", "windows": 4, "length": 24}, "evaluation": {"windows": 0}}
    selector = {"selector": {"class_path": "given", "init_args": {"sites": SELECTED}}}
    return subfit.compress(folder, output=output, **data | selector | given)


@pytest.fixture(params=METHODS)
def checkpoint(request, tmp_path):
    if importlib.util.find_spec(METHODS[request.param]) is None:
        pytest.skip(f"the package {request.param} is not installed")
    return quantised(tmp_path, request.param)


def plain(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def dequantised(folder):
    """The model as transformers de-quantises it."""
    if "bitsandbytes" in (folder / "config.json").read_text():
        return plain(folder).dequantize()
    return plain(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


@torch.no_grad()
def logits_of(model):
    """In float32, as SubFit does not compute in bfloat16 where that is emulated; of a quantised model, as it is."""
    return (model if is_quantised(model) else model.float())(tiny_tokens(2)).logits.float()


def distance(found, expected):
    return (found - expected).norm() / expected.norm()


def is_replaced(name):
    return any(f".{path}" in name for path in ("1.self_attn.", "1.mlp.", "3.mlp."))


def test_kept_weights_are_saved_as_they_came(checkpoint, tmp_path):
    result = compressed(checkpoint, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    kept = {name: value for name, value in before.items() if not is_replaced(name)}
    assert sum("proj.weight" in name for name in kept) > 3 * 14  # several tensors for each linear layer of what is kept
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in kept.items())
    assert all(is_replaced(name) or "subfit_shared" in name for name in after.keys() - kept.keys())
    expected = logits_of(result.model)
    assert torch.equal(logits_of(dequantised(tmp_path / "out")), expected)
    for loaded in (subfit.load(tmp_path / "out")[0], plain(tmp_path / "out")):
        assert is_quantised(loaded)
        assert distance(logits_of(loaded), expected) < ROUNDING


def test_it_is_calibrated_as_it_is(checkpoint):
    model = compressed(checkpoint, selector={"class_path": "given", "init_args": {"sites": []}}).model
    assert torch.equal(logits_of(dequantised(checkpoint)), logits_of(model))
    assert distance(logits_of(plain(checkpoint)), logits_of(model)) < ROUNDING


def test_another_type_is_saved_dense(checkpoint, tmp_path):
    compressed(checkpoint, tmp_path / "out", dtype="float32")
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_weight_that_was_changed_is_saved_dense(checkpoint, tmp_path):
    compressed(checkpoint, tmp_path / "out", fitting="sequential", refit_kept=0.1)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after["model.layers.2.mlp.down_proj.weight"].dtype == torch.bfloat16
    assert any(
        "model.layers.2.mlp.up_proj.weight" in name and value.dtype != torch.bfloat16 for name, value in after.items()
    )


def test_weights_on_the_disk_are_refused(checkpoint):
    for work in (compressed, subfit.load, subfit.evaluate):
        with pytest.raises(SubFitError, match="its weights are quantised, and are loaded as a whole; leave out device_map"):
            work(checkpoint, device_map="disk")


def test_a_loaded_model_is_refused_with_the_call_that_dequantises_it(checkpoint, tmp_path):
    with pytest.raises(
        SubFitError, match=r"the weights are quantised \(.*, which cannot be saved beside bypasses; "
    ) as caught:
        compressed(plain(checkpoint), tokenizer=tiny_tokenizer())
    call = r"give subfit.compress the model that AutoModelForCausalLM.from_pretrained\((.*) returns$"
    assert re.search(call, str(caught.value))[1] in (
        "...).dequantize()",
        "..., quantization_config=CompressedTensorsConfig(dequantize=True))",
    )
    result = compressed(dequantised(checkpoint), tmp_path / "out", tokenizer=tiny_tokenizer())
    assert torch.equal(logits_of(subfit.load(tmp_path / "out")[0]), logits_of(result.model))


def test_the_numbers_are_those_of_the_compressed_model(checkpoint, tmp_path):
    result = compressed(checkpoint, tmp_path / "out", evaluation={"source": "repeated", "windows": 2, "length": 24})
    data = EvaluationData(source="repeated", windows=2, length=24)
    found = subfit.evaluate(tmp_path / "out", reference=checkpoint, data=data)
    assert found["parameters"] == sum(p.numel() for p in result.model.parameters())
    assert found["kl"] == pytest.approx(result.record["evaluation"]["kl"], rel=1e-6)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    add_section(dense(tmp_path / "model"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["compress", "--model", str(tmp_path / "model")]) == 2
    said = "its weights are quantised, which a package of its own reads: pip install compressed-tensors"
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)
