import pytest
import torch
from conftest import FAMILIES, MIXED, SMALL, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, GraniteConfig, OPTConfig

from subfit.errors import SubFitError
from subfit.model.activations import watch
from subfit.model.decoder_check import check_decoder
from subfit.model.discovery import find_sites

GEMMA4 = {"head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 101, "hidden_size_per_layer_input": 0,
          "num_kv_shared_layers": 0, **MIXED}  # fmt: skip
FALCON = {"num_kv_heads": 2, "ffn_hidden_size": 48, "num_key_value_heads": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_both_branches_of_every_layer_in_the_order_of_the_stream(family):
    model = tiny_model(family)
    sites = find_sites(model)
    assert [site.name for site in sites] == [f"{kind}.{layer}" for layer in range(4) for kind in ("attention", "ffn")]
    for site in sites:
        core = type(model.get_submodule(site.path)).__name__
        assert ("Attention" in core) == (site.kind == "attention"), core
        assert site.width == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_the_stream_plus_what_its_sites_add(family):
    model, tokens = tiny_model(family), tiny_tokens(2)
    first, second = find_sites(model)[:2]
    with torch.no_grad(), watch(model, first) as a, watch(model, second) as b, watch(model, find_sites(model)[2]) as after:
        model(tokens)
    torch.testing.assert_close(after.h, a.h + a.y + b.y)
    if not first.shares_norm and family != "gpt_neox":
        torch.testing.assert_close(b.h, a.h + a.y)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("llama", (True, False)), ("gemma3_text", (True, True)), ("olmo2", (False, True))],
)
def test_norms_before_and_after_a_branch(family, expected):
    for site in find_sites(tiny_model(family)):
        assert (site.input_norm is not None, site.output_norm is not None) == expected


@pytest.mark.parametrize("seed", range(8))
def test_what_is_added_as_it_is_has_a_coefficient_of_1_whatever_the_rounding(seed):
    """Massive activations, whose rounding in bfloat16 is far larger than what the other values of the stream are."""
    torch.manual_seed(seed)
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[seed] *= 3000
    assert {site.coefficient for site in find_sites(model.to(torch.bfloat16))} == {1.0}


def test_parallel_branches_share_their_norm():
    assert all(site.shares_norm for site in find_sites(tiny_model("phi")))
    assert not any(site.shares_norm for site in find_sites(tiny_model("llama")))


def test_parameters_are_those_that_leave_with_the_branch():
    model = tiny_model("gemma3_text")
    site = find_sites(model)[0]
    core = sum(p.numel() for p in model.get_submodule(site.path).parameters())
    assert site.parameters == core + 32  # the output norm


def test_watching_can_stop_early():
    model, ran = tiny_model(), []
    site = find_sites(model)[1]
    model.model.layers[1].register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad(), watch(model, site, until="x") as seen:
        model(tiny_tokens(1))
    assert seen.x.shape == seen.h.shape == (1, 24, 32)
    assert not ran and not hasattr(seen, "y")


@pytest.mark.parametrize("multiplier", [0.3, 2.0])
def test_the_coefficient_of_a_branch_is_found(multiplier):
    small = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
    model = AutoModelForCausalLM.from_config(GraniteConfig(**small, residual_multiplier=multiplier)).eval()
    assert [site.coefficient for site in find_sites(model)] == pytest.approx([multiplier] * 8, rel=1e-6)


@torch.no_grad()
def test_a_layer_that_scales_its_whole_output_adds_its_branches_as_they_are():
    model, tokens = tiny_model("gemma4_text", **GEMMA4), tiny_tokens(2)
    for layer in model.model.layers:
        layer.layer_scalar.fill_(0.4)  # as in real checkpoints; random initialisation leaves it at 1
    first, second, third = find_sites(model)[:3]
    assert (first.coefficient, second.coefficient) == (1, 1)
    with watch(model, first) as a, watch(model, second) as b, watch(model, third) as after:
        model(tokens)
    torch.testing.assert_close(b.h, a.h + a.added)
    torch.testing.assert_close(after.h, 0.4 * (b.h + b.added))


def test_an_attention_whose_keys_and_values_others_use_is_kept_with_a_line(caplog):
    model = tiny_model("gemma4_text", **GEMMA4 | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8})
    names = [site.name for site in find_sites(model)]
    assert names == ["ffn.0", "ffn.1", "attention.2", "ffn.2", "attention.3", "ffn.3"]
    (line,) = caplog.messages
    assert line.endswith("give values to later layers, too: model.layers.0.self_attn, model.layers.1.self_attn")
    check_decoder(model, find_sites(model))


@torch.no_grad()
def test_what_a_layer_changes_in_place_is_seen_as_the_core_gave_it():
    model, tokens = tiny_model("falcon", **FALCON), tiny_tokens(2)
    attention, ffn, following = find_sites(model)[:3]
    assert ffn.overwritten and not attention.overwritten
    expected = model(tokens).logits
    with watch(model, attention) as a, watch(model, ffn) as b, watch(model, following) as after:
        assert torch.equal(model(tokens).logits, expected)
    torch.testing.assert_close(after.h, a.h + a.y + b.y)


def test_a_branch_that_is_no_module_stays():
    model = AutoModelForCausalLM.from_config(
        OPTConfig(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
    )
    assert [site.name for site in find_sites(model.eval())] == ["attention.0", "attention.1"]


def test_what_adds_the_stream_within_its_modules_is_refused():
    with pytest.raises(SubFitError, match="layer 0 of BloomForCausalLM does not give the stream .*self_attention"):
        find_sites(tiny_model("bloom", n_layer=2, n_head=4))


def test_a_model_without_layers_is_refused():
    with pytest.raises(SubFitError, match="Linear has no list of decoder layers"):
        find_sites(torch.nn.Linear(2, 2))
