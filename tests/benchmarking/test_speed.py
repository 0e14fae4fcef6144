"""Speed and footprint: the arithmetic of a benchmark by hand, and its clock with known delays."""

import copy
import time

import pytest
import torch
from conftest import Given, recipe, tiny_model, tiny_tokens
from torch import nn
from transformers import DynamicCache

from subfit import SubFitError
from subfit.benchmarking.speed import compare_speed
from subfit.benchmarking.workload import Workload
from subfit.model.sizes import cache_bytes, footprint
from subfit.pipeline import compress_model
from subfit.registry import make

D, FFN, KV, LAYERS, VOCABULARY = 32, 48, 16, 4, 101  # of the tiny Llama
ATTENTION = 2 * D * D + 2 * D * KV  # parameters
REPLACED = ["attention.0", "attention.2", "ffn.1"]
SMALL = Workload(prompt_lengths=(8,), contexts=(16,), batch_sizes=(2,), new_tokens=3, repeats=2, warmup=1)


@pytest.fixture(scope="module")
def models():
    """A tiny dense Llama and a compressed one, with low-rank bypasses of rank 2."""
    dense = tiny_model()
    rank = {"class_path": "low_rank", "init_args": {"rank": 2}}
    made = recipe(selector=Given(REPLACED), attention_bypass=make("bypasses", rank), ffn_bypass=make("bypasses", rank))
    return dense, compress_model(copy.deepcopy(dense), tiny_tokens(), made).model


def prefill_flops(length: int, attentions: int, ffns: int, bypasses: int) -> float:
    """Of one token of a prompt; 2 for each parameter of a matrix, Q K^T and its product with V, the head once."""
    branches = attentions * (2 * ATTENTION + 4 * length * D) + ffns * 6 * D * FFN + bypasses * 2 * (2 * D * 2)
    return branches + 2 * D * VOCABULARY / length


def test_flops_bytes_and_sizes_are_those_of_the_architecture(models):
    result = compare_speed(*models, SMALL)
    (prefill,), (decoding,) = result["prefill"], result["decoding"]
    expected = {"dense": prefill_flops(8, 4, 4, 0), "compressed": prefill_flops(8, 2, 3, 3)}
    assert prefill["flops_per_token"] == pytest.approx(expected)
    assert prefill["speedup"]["ideal"] == pytest.approx(expected["dense"] / expected["compressed"])

    norms, head = D * (2 * LAYERS + 1), D * VOCABULARY
    bypass = 2 * D * 2 + D
    dense = LAYERS * (ATTENTION + 3 * D * FFN) + norms + head
    compressed = 2 * ATTENTION + 3 * 3 * D * FFN + 3 * bypass + norms + head
    assert [footprint(model)["parameters"] for model in models] == [dense, compressed]
    cache = {
        "dense": 4 * 2 * 16 * 4 * 2 * KV,
        "compressed": 4 * 2 * 16 * 2 * 2 * KV,
    }  # bytes, batch, tokens, layers, K and V
    assert decoding["kv_bytes"] == cache
    read = {"dense": (4 * dense + cache["dense"]) / 2, "compressed": (4 * compressed + cache["compressed"]) / 2}
    assert decoding["bytes_per_token"] == read
    assert decoding["speedup"]["ideal"] == pytest.approx(read["dense"] / read["compressed"])
    step = {"dense": prefill_flops(17, 4, 4, 0), "compressed": prefill_flops(17, 2, 3, 3)}  # the head at every token
    head_again = 2 * D * VOCABULARY * (1 - 1 / 17)
    assert decoding["flops_per_token"] == pytest.approx({name: flops + head_again for name, flops in step.items()})
    assert decoding["tokens_per_second"]["dense"] == pytest.approx(2 * 3 / decoding["seconds"]["dense"])


def test_the_cache_is_in_proportion_to_the_attentions_left(models):
    dense, compressed = models
    assert footprint(compressed)["kv_bytes_per_token"] * 4 == footprint(dense)["kv_bytes_per_token"] * 2
    cache = DynamicCache(config=dense.config)
    with torch.no_grad():
        dense(tiny_tokens(3, 20), past_key_values=cache)
    assert cache_bytes(cache) == 3 * 20 * footprint(dense)["kv_bytes_per_token"]


class Slow(nn.Module):
    """Calls another module after some seconds."""

    def __init__(self, module, seconds):
        super().__init__()
        self.module, self.seconds = module, seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.module(x)


def test_a_known_delay_is_measured():
    """Each step of decoding waits 40 and 10 ms, the prefill too, which is not a part of decoding."""
    models = [tiny_model(), tiny_model()]
    for model, seconds in zip(models, (0.04, 0.01), strict=True):
        model.lm_head = Slow(model.lm_head, seconds)
    result = compare_speed(*models, SMALL)
    (prefill,), (decoding,) = result["prefill"], result["decoding"]
    assert prefill["seconds"]["dense"] >= 0.04 and decoding["seconds"]["dense"] >= 3 * 0.04
    for entry in (prefill, decoding):
        assert 1.5 < entry["speedup"]["measured"] < 8 and entry["speedup"]["ideal"] == 1


def test_lack_of_memory_is_one_line(models, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models[1], "forward", full)
    with pytest.raises(SubFitError, match="not enough memory for a prompt of 8 tokens"):
        compare_speed(*models, SMALL)
