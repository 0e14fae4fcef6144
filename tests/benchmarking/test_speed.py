"""Speed and footprint: the arithmetic of a benchmark by hand, its clock with known delays, and the command from outside."""

import copy
import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Given, recipe, tiny_model, tiny_tokens
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from subfit import SubFitError
from subfit.benchmarking.compression_cost import compression_cost
from subfit.benchmarking.random_weights import random_models
from subfit.benchmarking.speed import compare_speed
from subfit.benchmarking.timing import interleave, speed_up
from subfit.benchmarking.workload import Workload, check_comparable
from subfit.cli.main import main
from subfit.fitting.costs import count_flops
from subfit.model.sizes import cache_bytes, footprint, peak_bytes, step_bytes, weight_bytes
from subfit.model.submodules import decoder_layers
from subfit.pipeline import compress_model
from subfit.registry import make

PROTOCOLS = Path(__file__).parents[2] / "experiments" / "benchmarks" / "speed"
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


def test_decoding_reads_a_row_of_an_embedding_unless_it_is_the_head_too():
    tied, own = tiny_model(), tiny_model(tie_word_embeddings=False)
    assert step_bytes(tied, 5) == weight_bytes(tied)
    assert step_bytes(own, 5) == weight_bytes(own) - 4 * D * (VOCABULARY - 5)


def test_attention_on_a_cpu_counts_every_query_with_every_key():
    q, k = torch.rand(2, 3, 5, 8), torch.rand(2, 3, 7, 8)
    with torch.no_grad():
        flops = count_flops(lambda: nn.functional.scaled_dot_product_attention(q, k, k))
    assert flops["Global"] == 2 * (2 * 3 * 5 * 7 * 8) * 2


def test_peak_memory_is_weights_and_what_is_held_at_once():
    model = nn.Linear(10, 10, bias=False)

    def run():
        held = torch.empty(1000)
        del held
        return torch.empty(3000), torch.empty(500)

    assert peak_bytes(model, run) == 4 * (100 + 3500)


def test_measurements_take_turns_in_both_orders_and_warm_up_first():
    taken = []

    def measure(name):
        taken.append(name)
        return float(len(taken))

    seconds = interleave({"dense": lambda: measure("dense"), "compressed": lambda: measure("compressed")}, 3, 1)
    assert taken == ["dense", "compressed", *("compressed", "dense", "dense", "compressed", "compressed", "dense")]
    assert seconds == {"compressed": [3.0, 6.0, 7.0], "dense": [4.0, 5.0, 8.0]}


def test_speed_up_by_hand():
    found = speed_up({"dense": [4.0, 2.0, 3.0, 8.0], "compressed": [2.0, 2.0, 2.0, 2.0]}, ideal=2.0)
    assert found == {
        "measured": 1.75,
        "quartiles": [1.375, 2.5],
        "ideal": 2.0,
        "reached": 0.875,
        "saved": pytest.approx(6 / 7),
    }
    assert speed_up({"dense": [1.0], "compressed": [1.0]}, ideal=1.0)["saved"] is None


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
    assert prefill["seconds"]["dense"] == pytest.approx(0.04, rel=0.5)
    assert decoding["seconds"]["dense"] == pytest.approx(3 * 0.04, rel=0.5)
    for entry in (prefill, decoding):
        assert 1.5 < entry["speedup"]["measured"] <= 4 and entry["speedup"]["ideal"] == 1


def test_random_models_share_what_is_kept_and_differ_where_asked(model_folder):
    bypasses = make("bypasses", "low_rank"), make("bypasses", "shared_low_rank")
    dense, compressed = random_models(str(model_folder / "config.json"), 0.5, *bypasses, dtype="bfloat16")
    assert dense.dtype == compressed.dtype == torch.bfloat16
    paths = [site["path"] for site in compressed.config.subfit["sites"]]
    assert sorted(paths) == sorted(f"model.layers.{i}.{name}" for i in (1, 3) for name in ("self_attn", "mlp"))
    assert not hasattr(dense.config, "subfit")
    assert dense.model.layers[0].mlp.up_proj.weight is compressed.model.layers[0].mlp.up_proj.weight
    added = sum(p.numel() for p in compressed.parameters()) - sum(p.numel() for p in dense.parameters())
    assert added < -0.8 * 2 * (ATTENTION + 3 * D * FFN)


def test_a_benchmark_from_the_outside(subfit, model_folder, text_file, tmp_path):
    given = ["--calibration.windows", 4, "--calibration.length", 32, "--evaluation.windows", 0]
    data = ["--calibration.path", text_file, "--sparsity", 0.5, "--output", "small"]
    assert (
        main(["compress", "--model", str(model_folder), *map(str, given), *map(str, data[:-1]), str(tmp_path / "small")])
        == 0
    )
    work = ["--prompt_lengths", 8, 16, "--contexts", 8, "--batch_sizes", 1, "--new_tokens", 2, "--repeats", 3]
    done = subfit("benchmark", "small", "--reference", model_folder, *work, "--output", "speed", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # nothing else on stdout
    assert result == json.loads((tmp_path / "speed" / "benchmark.json").read_text())
    assert (tmp_path / "speed" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert [entry["prompt_length"] for entry in result["prefill"]] == [8, 16] and result["setting"]["dtype"] == "float32"
    assert result["size"]["compressed"]["kv_bytes_per_token"] * 2 == result["size"]["dense"]["kv_bytes_per_token"]
    assert all(seconds > 0 for entry in result["decoding"] for seconds in entry["seconds"].values())
    assert "prefill 16" in done.stderr and "turn/s" in done.stderr  # progress


def test_a_benchmark_of_random_weights_shows_a_table(model_folder, tmp_path, capsys):
    (tmp_path / "speed.yaml").write_text("prompt_lengths: [8]\ncontexts: []\nrepeats: 1\nattention_bypass: identity\n")
    given = ["--config", str(tmp_path / "speed.yaml"), "--warmup", "0", "--output", str(tmp_path / "speed")]
    assert main(["benchmark", "--random_weights", str(model_folder), *given]) == 0
    shown = capsys.readouterr().out
    assert "prefill 8" in shown and "cpu, " in shown and "eager" in shown and "forward passes" not in shown


def test_what_a_compression_costs_is_measured(model_folder, tmp_path, capsys):
    none, windows = ["--prompt_lengths", "--contexts"], ["--calibration_windows", "8", "32", "--calibration_length", "64"]
    given = [*none, *windows, "--output", str(tmp_path / "cost")]
    assert main(["benchmark", "--random_weights", str(model_folder), *given]) == 0
    shown = capsys.readouterr().out
    assert "32 x 64" in shown and "ideal" not in shown
    less, more = json.loads((tmp_path / "cost" / "benchmark.json").read_text())["compression"]
    assert (less["windows"], more["windows"], more["length"]) == (8, 32, 64)
    assert set(more["seconds"]) == {"forward", "score", "select", "fit"}
    assert more["forwards"] >= (more["seconds"]["score"] + more["seconds"]["fit"]) / more["seconds"]["forward"]


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_protocols_run(protocol, model_folder, capsys):
    wanted = yaml.safe_load(protocol.read_text())
    assert (PROTOCOLS.parents[2] / wanted["random_weights"]).is_file()
    small = {"prompt_lengths": 8, "contexts": 8, "batch_sizes": 2, "calibration_windows": 2}
    small = {name: value for name, value in small.items() if wanted.get(name) != []} | {"calibration_length": 16}
    small |= {"new_tokens": 2, "repeats": 1, "device": "cpu", "random_weights": model_folder}
    given = [part for name, value in small.items() for part in (f"--{name}", str(value))]
    assert main(["benchmark", "--config", str(protocol), *given, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [len(result[part]) for part in ("prefill", "decoding")] == ["prompt_lengths" in small, "contexts" in small]
    assert result["compression"][0]["length"] == 16


@pytest.mark.parametrize("shape", sorted(PROTOCOLS.glob("shapes/*.json")), ids=lambda path: path.stem)
def test_the_shapes_of_the_protocols_are_those_of_models(shape):
    config = AutoConfig.from_pretrained(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert len(decoder_layers(model)[1]) == config.num_hidden_layers
    if shape.stem == "smollm2-135m":
        assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_a_compression_that_was_timed_leaves_the_model_as_it_was_and_its_memory_grows_by_the_stream():
    dense = tiny_model()
    before = copy.deepcopy(dense.state_dict())
    half, whole = (compression_cost(dense, tiny_tokens(n, 64), recipe(sparsity=0.5))["peak_bytes"] for n in (64, 128))
    assert whole - half == pytest.approx(64 * 64 * D * 4, rel=0.2)  # the stream of 64 windows
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert len(before) == len(dense.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 90}, "has 90 tokens"),
        ({"hidden_size": 16}, "width 16"),
        ({"max_position_embeddings": 12}, "12 positions"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(changes, message):
    with pytest.raises(SubFitError, match=message):
        check_comparable(tiny_model(), tiny_model(**changes), SMALL)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give a compressed model and its dense reference"),
        (["a", "--reference", "b", "--random_weights", "c"], "random_weights alone"),
        (["--random_weights", "nobody/nothing"], "cannot build a model of the configuration 'nobody/nothing'"),
        (["--random_weights", "c", "--sparsity", "1"], "sparsity is 1"),
        (["--random_weights", "c", "--repeats", "0"], "repeats is 0; it must be at least 1"),
        (["--random_weights", "c", "--batch_sizes", "1", "0"], "batch_sizes is 0"),
        (["--random_weights", "c", "--prompt_lengths", "--contexts"], "there is nothing to time"),
        (["--random_weights", "c", "--calibration_windows", "0"], "calibration_windows is 0"),
        (["--random_weights", "c", "--output", "."], "the output folder . exists"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(given, message, capsys):
    assert main(["benchmark", *given]) == 2
    shown = capsys.readouterr()
    assert message in shown.err.strip().splitlines()[-1] and shown.out == ""


def test_lack_of_memory_is_one_line(models, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models[1], "forward", full)
    with pytest.raises(SubFitError, match="not enough memory for a prompt of 8 tokens"):
        compare_speed(*models, SMALL)
