"""A plan for llama.cpp's architecture `deci` computes what the model does, whatever stands where."""

import pytest
import torch
from conftest import names_of, tiny_model
from exported import BYPASSES, FAMILIES, PLACES, compressed, dense, spec

from subfit.errors import SubFitError
from subfit.export import deci, deci_graph
from subfit.export.deci_graph import check_plan, plan_logits
from subfit.export.llama_family import plan_of

SCALED = {  # rotary embeddings
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def difference(model, plan=None) -> float:
    """The largest difference of the logits of a text, far apart in its positions, to what a plan computes."""
    tokens = torch.arange(3, 40)
    positions = torch.arange(len(tokens)) * 6
    given = {"position_ids": positions[None], "attention_mask": torch.ones(1, len(tokens))}
    with torch.no_grad():
        logits = model(tokens[None], use_cache=False, **given).logits[0]
    return float((plan_logits(plan or plan_of(model), tokens, positions) - logits).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_model_is_held_exactly(family):
    model = dense(family)
    plan = plan_of(model)
    assert len(plan.layers) == 4
    assert plan.factors is None
    assert difference(model, plan) < 1e-4


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bypass", BYPASSES)
def test_every_bypass_is_held_exactly_wherever_it_stands(bypass, place):
    model = compressed("llama", PLACES[place], spec(bypass))
    assert difference(model) < 1e-4


@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("bypass", ["low_rank", "linear"])
def test_every_family_is_held_exactly(family, bypass):
    assert difference(compressed(family, names_of(0, 2), spec(bypass))) < 1e-4


def test_kept_neurons_are_held_exactly():
    kept = {"class_path": "kept_neurons", "init_args": {"share": 0.5}}
    assert difference(compressed("llama", ["attention.1", "ffn.1", "ffn.2"], spec("low_rank"), kept)) < 1e-4


def test_biases_of_attentions_and_feed_forwards_are_kept():
    model = compressed("llama", names_of(1), spec("mean"), attention_bias=True, mlp_bias=True)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    assert difference(model) < 1e-4


@pytest.mark.parametrize("scaling", SCALED)
def test_scaled_rotary_embeddings_are_written_as_factors(scaling):
    rope = {"rope_theta": 10_000.0, **SCALED[scaling]}
    model = compressed("llama", names_of(1), spec("low_rank"), rope_parameters=rope)
    plan = plan_of(model)
    assert plan.factors is not None
    assert difference(model, plan) < 1e-4


def test_partly_rotated_heads_are_held_exactly():
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    model = compressed("phi3", names_of(1), spec("low_rank"), rope_parameters=rope)
    assert difference(model) < 1e-4


def test_tied_embeddings_are_written_once():
    assert plan_of(dense("llama")).output is None  # tied in the tests' configuration
    assert plan_of(dense("mistral")).output is not None


def test_the_context_is_what_a_sliding_window_lets_full_attention_see():
    assert plan_of(dense("mistral", sliding_window=None)).context == 256
    assert plan_of(dense("mistral", sliding_window=100)).context == 100


def test_ranks_are_filled_up_for_the_quantiser():
    plan = plan_of(compressed("llama", ["ffn.1"], spec("low_rank")))
    assert [layer.units for layer in plan.layers] == [48, 32, 48, 48]


def test_a_constant_takes_no_layer_and_no_units():
    plan = plan_of(compressed("llama", ["attention.1", "attention.2"], spec("mean")))
    assert [(layer.heads, layer.kv_heads, layer.units) for layer in plan.layers] == [
        (4, 2, 48),
        (0, 0, 48),
        (0, 0, 48),
        (4, 2, 48),
    ]


def test_a_model_without_attention_gets_one_head_of_zeros():
    plan = plan_of(compressed("llama", PLACES["all attentions"], spec("mean")))
    assert [layer.kv_heads for layer in plan.layers][0] == 1
    assert sum(layer.kv_heads for layer in plan.layers) == 1


def test_layers_without_attention_have_no_cache():
    plan = plan_of(compressed("llama", ["attention.0", "attention.2"], spec("linear")))
    assert [layer.kv_heads for layer in plan.layers] == [0, 0, 2, 0, 0, 2]  # a matrix with a bias takes a layer of its own


@pytest.mark.parametrize(
    ("family", "reason"), [("qwen3", "norms on queries"), ("mixtral", "experts"), ("gpt2", "layer norms")]
)
def test_a_family_that_deci_cannot_hold_is_refused_by_name(family, reason):
    with pytest.raises(SubFitError, match=rf"the family {family} .*{reason}"):
        plan_of(tiny_model(family))


def test_a_bypass_that_reads_the_stream_is_refused_by_its_submodule():
    model = compressed("llama", ["attention.2"], {"class_path": "linear", "init_args": {"reads": "stream"}})
    with pytest.raises(SubFitError, match=r"attention\.2: its bypass reads the residual stream"):
        plan_of(model)


def test_kept_heads_are_refused_by_their_submodule():
    with pytest.raises(SubFitError, match=r"attention\.2: its bypass keeps some of the Attention's heads"):
        plan_of(compressed("llama", ["attention.2"], {"class_path": "kept_heads"}, spec("mean")))


def test_a_bypass_with_another_activation_is_refused_by_what_it_is_made_of():
    gelu = {"class_path": "mlp", "init_args": {"activation": "gelu", "hidden": 8, "steps": 0}}
    with pytest.raises(SubFitError, match=r"ffn\.1: its bypass is made of Linear and GELU"):
        plan_of(compressed("llama", ["ffn.1"], spec("low_rank"), gelu))


def test_more_layers_than_llama_cpp_reads_are_refused(monkeypatch):
    monkeypatch.setattr(deci, "MOST_LAYERS", 3)
    with pytest.raises(SubFitError, match="3 layers at most, and this model takes 4"):
        plan_of(dense())


def test_a_plan_that_computes_something_else_is_refused():
    model = dense()
    plan = plan_of(model)
    check_plan(plan, model)
    plan.theta *= 2
    with pytest.raises(SubFitError, match="other logits"):
        check_plan(plan, model)


def test_the_reference_counts_positions_and_sees_no_later_token():
    model = dense()
    plan, tokens = plan_of(model), torch.arange(5, 25)
    whole = plan_logits(plan, tokens, torch.arange(20))
    assert torch.allclose(whole[:7], plan_logits(plan, tokens[:7], torch.arange(7)), atol=1e-5)
    assert plan.context > deci_graph.TOKENS
