"""Every bypass through the whole way, on degenerate data, and with options that are wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from compressed import FRESH, generate
from conftest import Given, names_of, recipe, tiny_model, tiny_tokens
from pairs import D, fitted, pairs

from subfit import registry
from subfit.errors import SubFitError
from subfit.model.discovery import find_sites
from subfit.pipeline import compress_model


def at_cut(bypass: str, **options) -> dict:
    """The options of a run that takes out whole consecutive layers."""
    inner = {"class_path": bypass, "init_args": options}
    cut = {"class_path": "at_cut", "init_args": {"bypass": inner}}
    return {"attention_bypass": "identity", "ffn_bypass": cut, "fitting": "sequential"}


def layer_at_cut(bypass: str, **options) -> dict:
    """The options of a run in which the last of consecutive layers is replaced as a whole."""
    made = at_cut(bypass, **options)
    return {**made, "attention_bypass": made["ffn_bypass"]}


def both(bypass: str, fitting: str = "one_shot", **options) -> dict:
    """The options of a run in which one kind of bypass takes the place of Attentions and FeedForwards."""
    made = {"class_path": bypass, "init_args": options}
    return {"attention_bypass": made, "ffn_bypass": made, "fitting": fitting}


def attention(bypass: str, fitting: str = "one_shot", **options) -> dict:
    """The options of a run with a bypass of Attentions alone."""
    return {"ffn_bypass": "linear", "attention_bypass": {"class_path": bypass, "init_args": options}, "fitting": fitting}


def ffn(bypass: str, fitting: str = "one_shot", **options) -> dict:
    """The options of a run with a bypass of FeedForwards alone."""
    return {"attention_bypass": "linear", "ffn_bypass": {"class_path": bypass, "init_args": options}, "fitting": fitting}


RULES = {
    "ffn.[0-1]": {"class_path": "shared_low_rank", "init_args": {"rank": 3}},
    "1": "identity",
    "2-9": {"class_path": "shared_low_rank", "init_args": {"rank": 2}},
}
CASES = {
    "allocated_low_rank": [both("allocated_low_rank"), both("allocated_low_rank", "sequential", by="variance", share=0.2)],
    "at_cut": [at_cut("linear"), at_cut("linear_patch"), at_cut("identity")],
    "by_rule": [both("by_rule", rules=RULES, default="mean"), both("by_rule", "sequential", rules=RULES)],
    "decoder_layer": [layer_at_cut("decoder_layer", epochs=2)],
    "diagonal": [both("diagonal"), both("diagonal", "sequential", reads="stream")],
    "identity": [both("identity")],
    "kept_heads": [
        {"attention_bypass": "kept_heads", "ffn_bypass": "mean"},
        {
            "attention_bypass": {"class_path": "kept_heads", "init_args": {"share": 0.0, "prior": "weights"}},
            "ffn_bypass": "linear",
            "fitting": "sequential",
        },
    ],
    "kept_neurons": [ffn("kept_neurons", share=0.3), ffn("kept_neurons", "sequential", neurons=1.0, share=0.2)],
    "linear": [both("linear"), both("linear", "sequential", reads="stream"), attention("linear", prior="weights")],
    "linear_patch": [both("linear_patch"), at_cut("linear_patch")],
    "low_rank": [
        both("low_rank", rank=3),
        both("low_rank", share=0.9),
        attention("low_rank", "sequential", prior="weights"),
    ],
    "low_rank_diagonal": [both("low_rank_diagonal"), both("low_rank_diagonal", "sequential", rank=2, reads="stream")],
    "mean": [both("mean"), both("mean", "sequential")],
    "mlp": [both("mlp", steps=10), both("mlp", "sequential", activation="gelu", hidden=6, steps=10)],
    "replace_me": [at_cut("replace_me"), at_cut("replace_me", loss="cosine", steps=10)],
    "scalar": [both("scalar"), both("scalar", "sequential", reads="stream")],
    "shared_low_rank": [both("shared_low_rank", rank=3), both("shared_low_rank", share=0.9)],
}
SELECTED = names_of(1, 2)
LOADER = f"""
import json, sys
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # while the first models are being made
for line in sys.stdin:
    sys.argv = ["", *json.loads(line)]
    exec({FRESH!r})
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What became of every case: its recipe, the compressed model, and what a fresh process made of the saved one."""
    folder = tmp_path_factory.mktemp("bypasses")
    tokens = tiny_tokens(3, seed=4)
    torch.save(tokens, folder / "tokens.pt")
    found = {}
    loader = subprocess.Popen([sys.executable, "-c", LOADER], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name, index in ((name, index) for name, cases in CASES.items() for index in range(len(cases))):
        made = recipe(scorer="random", selector=Given(SELECTED), **CASES[name][index])
        result = compress_model(tiny_model(), tiny_tokens(10, 16), made)
        place = folder / f"{name}_{index}"
        result.model.save_pretrained(place)
        print(json.dumps([str(place), str(folder / "tokens.pt"), f"{place}.pt"]), file=loader.stdin, flush=True)
        found.setdefault(name, []).append((made, result, f"{place}.pt"))
    _, stderr = loader.communicate(timeout=600)
    assert loader.returncode == 0, stderr
    return tokens, found


@pytest.mark.parametrize("name", registry.names("bypasses"))
def test_every_bypass_from_fitting_to_a_fresh_process(runs, name):
    assert name in CASES, f"add the bypass {name} to the table"
    tokens, found = runs
    sites = find_sites(tiny_model())
    for made, result, saved in found[name]:
        expected = 0
        for kind, bypass in (("attention", made.attention_bypass), ("ffn", made.ffn_bypass)):
            expected += bypass.parameters([s for s in sites if s.kind == kind and s.name in SELECTED])
        assert result.record["size"]["added_parameters"] == expected
        with torch.no_grad():
            fresh, logits = torch.load(saved), result.model(tokens).logits
            assert logits.isfinite().all() and torch.equal(fresh["logits"], logits)
            assert torch.equal(fresh["generated"], result.model.generate(tokens[:1, :5], max_new_tokens=5))
        cached, without = (generate(result.model, tokens, torch.ones_like(tokens), use_cache=use) for use in (True, False))
        assert torch.equal(cached.sequences, without.sequences)
        torch.testing.assert_close(torch.stack(cached.logits), torch.stack(without.logits), rtol=1e-4, atol=1e-4)


DEGENERATE = {
    "one token": pairs(1),
    "fewer tokens than dimensions": pairs(5),
    "constant features": (np.full((30, D), 0.1) * np.arange(D), pairs(30)[1]),
    "zero inputs": (np.zeros((30, D)), pairs(30)[1]),
    "zero targets": (pairs(30)[0], np.zeros((30, D))),
}


@pytest.mark.parametrize("name", registry.names("bypasses"))
@pytest.mark.parametrize("data", DEGENERATE)
def test_degenerate_data_give_finite_maps(name, data):
    options = {"by_rule": {"rules": {"ffn.*": "low_rank_diagonal"}}, "mlp": {"steps": 3}}.get(name, {})
    if name in ("identity", "decoder_layer", "kept_neurons", "kept_heads"):  # no data, a layer, hidden units
        return
    x, y = DEGENERATE[data]
    module = fitted(name, x, y, **options)
    assert all(p.isfinite().all() for p in module.parameters())
    gave = module(torch.tensor(pairs(50, seed=1)[0]).float())
    assert gave.isfinite().all() and (data != "zero targets" or gave.abs().max() < 1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("at_cut", {"bypass": "low_rnk"}, "did you mean 'low_rank'"),
        ("by_rule", {"rules": {"3-1": "mean"}}, "range of layers 3-1 is empty"),
        ("by_rule", {"rules": {"1-3": "mea"}}, "did you mean 'mean'"),
        ("allocated_low_rank", {"by": "size"}, "is 'size'; it must be share or variance"),
        ("mlp", {"activation": "relu"}, "is 'relu'; it must be swiglu or gelu"),
        ("mlp", {"activation": "gelu", "hidden": 7}, "hidden is 7; .*even for gelu"),
        ("mlp", {"steps": -1}, "steps is -1"),
        ("replace_me", {"loss": "l1"}, "is 'l1'; it must be squared or cosine"),
    ],
)
def test_bad_options_are_one_clear_error(name, options, message):
    with pytest.raises(SubFitError, match=message):
        registry.make("bypasses", {"class_path": name, "init_args": options})


def test_replace_me_needs_a_kept_feed_forward_before_the_cut():
    with pytest.raises(SubFitError, match="needs a kept one before it"):
        compress_model(tiny_model(), tiny_tokens(), recipe(selector=Given(names_of(0, 1)), **at_cut("replace_me")))


def test_replace_me_needs_a_linear_output_projection():
    with pytest.raises(SubFitError, match="does not end in a linear layer"):
        compress_model(tiny_model("gpt2"), tiny_tokens(), recipe(selector=Given(SELECTED), **at_cut("replace_me")))
