"""Tiny models of real architectures, built in memory."""

import os
import subprocess
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # always: what has threads of OpenMP's cannot be forked, and tests fork

import forked
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from subfit import pipeline
from subfit.config import Recipe, resolve
from subfit.model.dtypes import rounded, rounding_of
from subfit.model.threads import usable_cores
from subfit.selector import Selector

VOCABULARY = 101
KINDS = ("attention", "ffn")  # of the sites of these models
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, **MIXED},  # output norms; two kinds of mask and of rotary embedding
    "olmo2": {},  # no input norms
    "phi": {},  # both branches read one norm, in parallel
    "gpt_neox": {},  # its layers call the cache by another name
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4},  # positional arguments
    "mixtral": {"num_local_experts": 4},
}


def tiny_model(family: str = "llama", **changes):
    """Returns a small model with random weights of an architecture of transformers."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SMALL, **FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():  # at their usual size, the branches of a random model add next to nothing
        if p.ndim > 1:
            p.data.mul_(3)
    return model


def tiny_tokens(windows: int = 12, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Returns random token ids without special tokens, (windows, length)."""
    return torch.randint(3, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of single characters, with the special tokens of `SMALL`."""
    characters = [chr(code) for code in range(32, 127)]
    ids = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *characters, "\n"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def names_of(*layers: int) -> list[str]:
    """Returns the names of both sites of some layers, in the order of the stream."""
    return [f"{kind}.{layer}" for layer in layers for kind in KINDS]


class Given(Selector):
    """Selects the sites with the given names."""

    def __init__(self, names: list[str]):
        self.names = names

    def select(self, scores, budget, calibration):
        return [site for site in scores if site.name in self.names]


def without_minutes(tuned: dict) -> dict:
    """Returns the record of a fine-tuning but for the time that it took, which no two runs have in common."""
    return {**tuned, "curve": [{key: value for key, value in point.items() if key != "minutes"} for point in tuned["curve"]]}


def recipe(**given) -> Recipe:
    """Returns a recipe from names of strategies, with the paper's as defaults."""
    return resolve(given).recipe


@pytest.fixture(scope="module")
def all_cores():
    """For what is large enough to gain by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def spoilt(monkeypatch):
    """Closed-form fits with noise on them, so that there is something to gain."""
    fit_recipe = pipeline.fit_recipe

    def fit(*args, **kwargs):
        replacements, record = fit_recipe(*args, **kwargs)
        generator = torch.Generator().manual_seed(0)
        for p in dict.fromkeys(p for r in replacements for module in r.trainable() for p in module.parameters()):
            p.data += p.std(correction=0) * torch.randn(p.shape, generator=generator).to(p.dtype)
            p.data.copy_(rounded(p.data, rounding_of(replacements[0].model)))
        return replacements, record

    monkeypatch.setattr(pipeline, "fit_recipe", fit)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny Llama with its tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A text of some thousand characters."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(1000)))
    return path


@pytest.fixture
def subfit(tmp_path):
    """Runs the command line in a process of its own, in an empty folder; returns the finished process.

    Given an environment, it is a fresh Python, which reads it as it starts.
    """

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        return forked.run([forked.SUBFIT, *arguments], tmp_path, env, fresh=env is not None)

    return run
