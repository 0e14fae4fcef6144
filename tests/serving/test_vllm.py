"""vLLM generates with compressed models what transformers does: tiny ones of every architecture that the plug-in knows."""

import pytest
from conftest import KINDS, tiny_tokens
from vllm_models import PROMPTS, check_same, compressed, in_vllm

FOUR = ["attention.0", "ffn.1", "attention.3", "ffn.3"]
ATTENTIONS, FEED_FORWARDS = ([f"{kind}.{layer}" for layer in range(4)] for kind in KINDS)
PAPER = {"attention_bypass": "low_rank", "ffn_bypass": "shared_low_rank"}
FAMILIES = ["gemma", "gemma2", "gemma3_text", "gpt2", "granite", "llama", "mistral", "mixtral", "olmo2", "phi", "phi3"]
FAMILIES += ["qwen2", "qwen3", "stablelm"]


def made(name: str, **arguments):
    return {"class_path": name, "init_args": arguments}


STREAM = made("low_rank", reads="stream")
CASES = {  # what else may stand in the place of a submodule, and where
    "kept neurons": ("mistral", FOUR, {"attention_bypass": "mean", "ffn_bypass": made("kept_neurons", share=0.3)}),
    "kept neurons without a gate": (
        "gpt2",
        FOUR,
        {"attention_bypass": "identity", "ffn_bypass": made("kept_neurons", share=0.3)},
    ),
    "small networks": (
        "llama",
        FOUR,
        {"attention_bypass": made("mlp", activation="gelu", steps=20), "ffn_bypass": made("mlp", steps=20)},
    ),
    "diagonals": ("phi3", FOUR, {"attention_bypass": "diagonal", "ffn_bypass": "low_rank_diagonal"}),
    "scalars": ("qwen3", FOUR, {"attention_bypass": "scalar", "ffn_bypass": "linear"}),
    "without input norms": ("qwen2", FOUR, {"attention_bypass": STREAM, "ffn_bypass": STREAM}),
    "without input and output norms": ("gemma3_text", FOUR, {"attention_bypass": STREAM, "ffn_bypass": STREAM}),
    "all attentions": ("llama", ATTENTIONS, PAPER),
    "all attentions, learned positions": ("gpt2", ATTENTIONS, PAPER),
    "all attentions, two kinds of them": ("gemma3_text", ATTENTIONS, PAPER),
    "all feed-forwards": ("llama", FEED_FORWARDS, PAPER),
    "everything": ("llama", ATTENTIONS + FEED_FORWARDS, PAPER),
}
REFUSED = {  # by what is given or what was done; the message
    "adapters": ({"enable_lora": True}, "subfit: LoRA adapters cannot be used with a compressed model in vLLM"),
}


@pytest.fixture(scope="module")
def prompts():
    return tiny_tokens(PROMPTS, 9, seed=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Compressed models by family or case, and their folders."""
    folder, found = tmp_path_factory.mktemp("compressed"), {}
    for name, (family, names, given) in {**{family: (family, FOUR, PAPER) for family in FAMILIES}, **CASES}.items():
        found[name] = compressed(family, names, **given), str(folder / name.replace(" ", "-"))
        found[name][0].save_pretrained(found[name][1])
    return found


@pytest.fixture(scope="module")
def served(models, prompts, tmp_path_factory):
    """What vLLM makes of them, in one process."""
    runs = {name: {"folder": folder, "options": {"max_model_len": 128}} for name, (_, folder) in models.items()}
    for name, (options, _) in REFUSED.items():
        runs[name] = {"folder": models["llama"][1], "options": options}
    return in_vllm(prompts, runs, tmp_path_factory.mktemp("vllm"))


def test_every_registered_architecture_is_tested(models):
    from subfit.export.vllm_plugin import ARCHITECTURES

    assert {type(models[family][0]).__name__.removeprefix("SubFit") for family in FAMILIES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", [*FAMILIES, *CASES])
def test_vllm_generates_what_transformers_does(models, served, prompts, name):
    check_same(served[name], models[name][0], prompts)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused_by_name(served, name):
    assert REFUSED[name][1] in served[name]["error"]
