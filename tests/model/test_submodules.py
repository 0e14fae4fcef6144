import pytest
import torch
from conftest import FAMILIES, SMALL, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, GraniteConfig, OPTConfig

from subfit.errors import SubFitError
from subfit.model.activations import watch
from subfit.model.submodules import find_sites


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


def test_a_scaled_branch_is_refused():
    small = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
    model = AutoModelForCausalLM.from_config(GraniteConfig(**small, residual_multiplier=0.3)).eval()
    with pytest.raises(SubFitError, match="layer 0 of GraniteForCausalLM does not add its branches"):
        find_sites(model)


def test_a_layer_without_a_feed_forward_module_is_refused():
    model = AutoModelForCausalLM.from_config(
        OPTConfig(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
    )
    with pytest.raises(SubFitError, match="not one Attention and one FeedForward.*fc1"):
        find_sites(model.eval())


def test_a_model_without_layers_is_refused():
    with pytest.raises(SubFitError, match="Linear has no list of decoder layers"):
        find_sites(torch.nn.Linear(2, 2))
