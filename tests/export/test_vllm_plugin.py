"""What the plug-in for vLLM accepts and refuses, where vLLM is not installed: the rest is in tests/serving."""

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from compressed import compressed
from transformers import AutoConfig, LlamaConfig

from subfit.export.llama_family import FAMILIES, WHY_NOT
from subfit.export.vllm_plugin import ARCHITECTURES, CompressedSettings

ALONE = """
import sys
import transformers.models.auto.modeling_auto
before = set(sys.modules)
import subfit.export.vllm_plugin
added = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert added <= {"subfit", "torch", "transformers"}, added
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The configurations of compressed models by family, as transformers reads them without remote code."""
    found = {}
    for family in ("llama", "gpt_neox", "mixtral"):
        folder = tmp_path_factory.mktemp(family)
        names = [f"ffn.{layer}" for layer in range(4)] if family == "mixtral" else ["attention.0", "ffn.1"]
        compressed(family, names).save_pretrained(folder)
        found[family] = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return found


def replaced(**changes):
    return {"subfit": {"sites": [{"kind": "attention", "path": "model.layers.0.self_attn", **changes}]}}


def model_settings(config, **changes):
    config = copy.deepcopy(config)
    config.update(changes)
    return SimpleNamespace(hf_config=config, architecture=config.architectures[0])


def settings(config, **given):
    refused = {"quant_config": None, "lora_config": None, "speculative_config": None, **given}
    cache = SimpleNamespace(enable_prefix_caching=True)
    return SimpleNamespace(model_config=SimpleNamespace(hf_config=config), cache_config=cache, **refused)


def test_the_plug_in_needs_torch_and_transformers_only():
    subprocess.run([sys.executable, "-c", ALONE], check=True)


def test_a_compressed_configuration_is_its_dense_one_with_another_architecture(saved):
    assert type(saved["llama"]) is LlamaConfig and saved["llama"].architectures == ["SubFitLlamaForCausalLM"]
    CompressedSettings.verify_and_update_model_config(model_settings(saved["llama"]))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt_neox", {}, "subfit: GPTNeoXForCausalLM is not served by vLLM; these are: "),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "subfit: vLLM does not serve .* was quantised"),
        (
            "llama",
            replaced(kind="mixer"),
            "subfit: .* model.layers.0.self_attn was replaced, another mixer than an Attention",
        ),
        ("llama", replaced(coefficient=0.3), "subfit: .* model.layers.0.self_attn was replaced, scaled when it is added"),
        ("llama", replaced(bypass={"class": "KeptGroups", "kept": 1}), "self_attn keeps some of its heads"),
        ("llama", {"subfit": {"format_version": 99}}, "written by a newer subfit"),
    ],
)
def test_what_vllm_cannot_serve_is_refused(saved, family, changes, message):
    with pytest.raises(ValueError, match=message):
        CompressedSettings.verify_and_update_model_config(model_settings(saved[family], **changes))


def test_settings_that_would_give_other_results_are_refused_by_name(saved):
    config = saved["llama"]
    CompressedSettings.verify_and_update_config(settings(config))
    for name, what in [("quant_config", "quantization"), ("lora_config", "LoRA"), ("speculative_config", "speculative")]:
        with pytest.raises(ValueError, match=f"subfit: {what}"):
            CompressedSettings.verify_and_update_config(settings(config, **{name: object()}))
    with pytest.raises(ValueError, match="all FeedForwards are replaced"):
        CompressedSettings.verify_and_update_config(settings(saved["mixtral"]))


def test_without_any_attention_there_is_no_prefix_caching(saved):
    config = copy.deepcopy(saved["llama"])
    config.subfit["sites"] = [{"kind": "attention"}] * 4
    found = settings(config)
    CompressedSettings.verify_and_update_config(found)
    assert found.cache_config.enable_prefix_caching is False


def test_the_page_on_serving_names_what_each_engine_serves():
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = page.partition("| architecture |")[2].partition("\n\n")[0].splitlines()[2:-1]
    found = {"vllm": set[str](), "llama.cpp": set[str](), "not llama.cpp": set[str]()}
    for row in rows:
        names, _, vllm, llama = (cell.strip() for cell in row.strip("|").split("|"))
        plain = {name.lower().replace(" ", "").replace("-", "") for name in names.split(", ")}
        found["vllm"] |= plain if vllm == "exact" else set()
        found["llama.cpp" if llama == "exact" else "not llama.cpp"] |= plain
    suffixes = ("ForCausalLM", "LMHeadModel")
    served = {next(name.removesuffix(s) for s in suffixes if name.endswith(s)).lower() for name in ARCHITECTURES}
    refused = {name.removesuffix("_text").replace("_", "") for name in WHY_NOT}
    assert found == {"vllm": served, "llama.cpp": set(FAMILIES), "not llama.cpp": refused}
