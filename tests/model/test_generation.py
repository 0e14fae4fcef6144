"""A compressed model decodes with its cache what it computes without."""

import pytest
import torch
from compressed import SELECTIONS, compressed, generate
from conftest import FAMILIES, tiny_model, tiny_tokens
from transformers import DynamicCache, StaticCache

from subfit.model.sizes import kv_bytes_per_token


@pytest.mark.parametrize("names", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_with_a_cache_equals_decoding_without(family, names):
    model = compressed(family, names)
    ids = tiny_tokens(3, 7, seed=1)
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, :1] = 0, 0  # left padding
    expected = generate(model, ids, mask, use_cache=False)
    caches = {
        "made by generate": {},
        "made by the user": {"past_key_values": DynamicCache()},
        "static": {"cache_implementation": "static", "disable_compile": True},
    }
    for name, options in caches.items():
        found = generate(model, ids, mask, use_cache=True, **options)
        assert torch.equal(found.sequences, expected.sequences), name
        for a, b in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_decoding_is_one_graph_for_the_compiler(family, names):
    """With a cache of a fixed size, as generation has it when it is compiled."""
    model, ids = compressed(family, names), tiny_tokens(2, 9)
    torch.compiler.reset()
    forward = torch.compile(model.forward, backend="eager", fullgraph=True)  # raises where the graph would break
    cache = StaticCache(config=model.config, max_cache_len=9)
    with torch.no_grad():
        found = [model(ids[:, :5], past_key_values=cache).logits]
        found += [forward(token, past_key_values=cache).logits for token in ids[:, 5:].split(1, 1)]
        torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", [None, DynamicCache])
def test_a_replaced_attention_holds_no_keys_and_no_values(cache):
    names = ["attention.0", "attention.2"]
    model = compressed("llama", names)
    ids = tiny_tokens(2, 9)
    with torch.no_grad():
        held = model(ids, use_cache=True, past_key_values=cache() if cache else None).past_key_values
        model(ids[:, :1], past_key_values=held)
    for layer in range(4):
        assert (held.layers[layer].keys is None) == (f"attention.{layer}" in names)
    assert held.get_seq_length() == 10
    assert [n > 0 for n in kv_bytes_per_token(model)] == [False, True, False, True]


def test_the_cache_without_any_attention_still_counts_tokens():
    model = compressed("gpt2", SELECTIONS["all attentions"])  # learned positions: they must go on
    ids = tiny_tokens(2, 9)
    with torch.no_grad():
        whole = model(ids).logits
        cache = model(ids[:, :5], use_cache=True).past_key_values
        assert cache.get_seq_length() == 5 and sum(kv_bytes_per_token(model)) == 0
        rest = model(ids[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 5:])


def test_beam_search_and_assisted_decoding():
    model, ids = compressed("llama", SELECTIONS["the first attention"]), tiny_tokens(1, 7, seed=1)
    beams = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, use_cache=False, **beams))
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    helped = model.generate(ids, assistant_model=tiny_model("llama"), **greedy)  # rolls the cache back
    assert torch.equal(helped, model.generate(ids, **greedy))
