"""The map that an Attention's bypass is drawn to, against its weights multiplied by hand, and fits to it by numpy."""

import numpy as np
import pytest
import torch
from conftest import Given, recipe, tiny_model, tiny_tokens
from pairs import lstsq

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.one_shot import fit_one_shot
from subfit.fitting.priors import own_map
from subfit.model.activations import Branch
from subfit.model.discovery import find_sites
from subfit.pipeline import compress_model
from subfit.strategies.bypasses.linear import Linear
from subfit.strategies.bypasses.low_rank import LowRank

D, HEADS, GROUPS = 32, 4, 2  # of the tiny models
SIZE = D // HEADS


def model_of(family, dtype=torch.float32):
    """A tiny model with biases, as random ones have none."""
    model = tiny_model(family)
    for p in model.parameters():
        if p.ndim == 1:
            p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)))
    return model.to(dtype)


def attention_of(model):
    return next(site for site in find_sites(model) if site.name == "attention.1")


def by_hand(family, core):
    """W_V W_O, head by head, (d, d)."""
    if family == "gpt2":
        value, output = core.c_attn.weight[:, 2 * D :], core.c_proj.weight
    elif family == "gpt_neox":  # which has query, key and value of each head beside each other
        value = core.query_key_value.weight.view(HEADS, 3, SIZE, D)[:, 2].reshape(D, D).T
        output = core.dense.weight.T
    else:
        value, output = core.v_proj.weight.T, core.o_proj.weight.T
    value, output = value.detach().double(), output.detach().double()
    groups = value.shape[1] // SIZE
    found = torch.zeros(D, D, dtype=torch.float64)
    for head in range(HEADS):
        own = slice(head * SIZE, (head + 1) * SIZE)
        group = head * groups // HEADS
        found += value[:, group * SIZE : (group + 1) * SIZE] @ output[own]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox"])
def test_the_map_is_that_of_the_weights(family, dtype):
    model = model_of(family, dtype)
    site = attention_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, expected = own_map(Branch(site, model)), by_hand(family, model.get_submodule(site.path))
    assert found.dtype == torch.float64
    assert (found - expected).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * expected.norm()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("olmo2", "attention.1", r"attention.1 \(Olmo2Attention\) is no linear map of a single token"),
        ("gemma3_text", "attention.1", r"attention.1 \(Gemma3Attention\) is no linear map of a single token"),
        ("llama", "ffn.1", "weights is for Attentions, and ffn.1 is none"),
    ],
)
def test_what_is_no_linear_map_of_a_token_is_refused(family, name, message):
    given = {f"{name.split('.')[0]}_bypass": Linear(prior="weights")}
    with pytest.raises(SubFitError, match=message) as caught:
        compress_model(tiny_model(family), tiny_tokens(), recipe(selector=Given([name]), **given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bypass", [Linear, LowRank])
def test_a_map_of_the_stream_has_no_prior(bypass):
    with pytest.raises(SubFitError, match="the bypass reads: stream; use input"):
        bypass(reads="stream", prior="weights")


def seen_at(model, site, tokens):
    """What a core reads and gives, (tokens, d) each."""
    seen = {}

    def see(core, args, kwargs, output):
        seen.update(x=kwargs["hidden_states"], y=output[0])

    with torch.no_grad(), model.get_submodule(site.path).register_forward_hook(see, with_kwargs=True):
        model(tokens)
    return (seen[name].flatten(0, 1).double().numpy() for name in "xy")


@pytest.mark.parametrize("rank", [3, D])
@pytest.mark.parametrize("ridge", [0.05, 2.0])
def test_fits_are_ridge_regression_towards_the_weights(rank, ridge):
    """Least squares on the tokens and further rows that draw W to the weights; of a lower rank, their best projection."""
    model, tokens = model_of("qwen2"), tiny_tokens(16)
    site = attention_of(model)
    x, y = seen_at(model, site, tokens)
    prior = by_hand("qwen2", model.get_submodule(site.path)).numpy()
    xc, yc = x - x.mean(0), y - y.mean(0)
    root = np.sqrt(ridge * (xc**2).sum() / D)  # of lambda * n * mean variance
    inputs, targets = np.r_[xc, root * np.eye(D)], np.r_[yc, root * prior]
    full = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    directions = np.linalg.svd(inputs @ full, full_matrices=False)[2][:rank]
    expected = full @ directions.T @ directions
    low_rank = LowRank(rank, ridge=ridge, prior="weights")
    bypasses = [low_rank] if rank < D else [low_rank, Linear(ridge, prior="weights")]
    for bypass in bypasses:
        (replacement,) = fit_one_shot(Calibration(model, tokens), {site: bypass})
        module = replacement.bypass
        assert sum(p.numel() for p in module.parameters()) == bypass.parameters([site])
        with torch.no_grad():
            gave = module(torch.from_numpy(x).float()).numpy()
        np.testing.assert_allclose(gave, xc @ expected + y.mean(0), rtol=1e-3, atol=1e-4)
    change = lstsq(x, y - x @ prior, ridge * (xc**2).sum() / D)
    np.testing.assert_allclose(full, prior + change, atol=1e-8)  # which is the prior, and a regression of what it leaves


@pytest.mark.parametrize("fitting", ["one_shot", "sequential"])
def test_it_is_found_in_a_model_in_which_earlier_sites_are_replaced(fitting):
    bypass = Linear(ridge=1e9, prior="weights")  # which leaves nothing but the prior
    given = {"selector": Given(["attention.0", "attention.1"]), "attention_bypass": bypass, "fitting": fitting}
    expected = by_hand("llama", tiny_model().model.layers[1].self_attn)
    result = compress_model(tiny_model(), tiny_tokens(), recipe(**given))
    weight = result.model.model.layers[1].self_attn.bypass.weight.detach().double().T
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
