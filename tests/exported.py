"""Compressed models of the Llama family, whose bypasses llama.cpp can hold, and where they stand."""

from conftest import Given, names_of, recipe, tiny_model, tiny_tokens
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers_of import byte_level

from subfit.pipeline import compress_model

TOKENS = 400  # of the vocabulary: bytes need more than the 101 of the other tests
WIDE = {"vocab_size": TOKENS, "hidden_size": 128}  # so that low-rank maps are smaller than their product
FAMILIES = ("llama", "mistral", "qwen2", "phi3")
PLACES = {
    "first layer": names_of(0),
    "last layer": names_of(3),
    "all attentions": names_of(0, 1, 2, 3)[::2],
    "all feed-forwards": names_of(0, 1, 2, 3)[1::2],
    "both in one layer": names_of(2),
    "first and third attention": ["attention.0", "attention.2"],
    "everything": names_of(0, 1, 2, 3),
}
BYPASSES = {
    "identity": {},
    "mean": {},
    "scalar": {},
    "diagonal": {},
    "linear": {},
    "low_rank": {"rank": 5},
    "shared_low_rank": {"rank": 5},
    "allocated_low_rank": {"share": 0.2},
    "low_rank_diagonal": {"rank": 5},
    "mlp": {"hidden": 7, "steps": 3},
    "by_rule": {"rules": {"attention.*": "linear", "0-1": "mean"}},
}


def spec(name: str) -> dict:
    """A bypass with its arguments, as a configuration has it."""
    return {"class_path": name, "init_args": BYPASSES[name]}


def dense(family: str = "llama", **changes):
    """A dense model."""
    return tiny_model(family, **{**WIDE, **changes})


def compressed(family: str, names: list[str], bypass: dict, ffn: dict | None = None, **changes):
    """A model with some submodules replaced."""
    made = recipe(selector=Given(names), attention_bypass=bypass, ffn_bypass=ffn or bypass)
    return compress_model(dense(family, **changes), tiny_tokens(), made, batch_size=12).model


def tokenizer():
    """A tokenizer for these models."""
    return byte_level(ByteLevel(add_prefix_space=False), size=TOKENS)
