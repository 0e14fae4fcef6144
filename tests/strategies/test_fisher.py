"""Neurons by their Fisher information, against naive formulas and from the outside."""

import numpy as np
import pytest
import torch
from conftest import recipe, tiny_model, tiny_tokenizer, tiny_tokens
from transformers import AutoModelForCausalLM

import subfit
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.layers import output_norm_of
from subfit.fitting.one_shot import fit_one_shot
from subfit.model.activations import watch
from subfit.model.checkpoint import save
from subfit.pipeline import compress_model
from subfit.strategies.selectors.fisher import Fisher, FittedNeurons, measure, numbers_to_keep, random_gradient

SMALL = {"windows": 4, "length": 16}


def ffns(calibration):
    return [site for site in calibration.sites if site.kind == "ffn"]


def test_the_importance_is_the_fisher_information_of_each_neuron():
    """Token by token, with hooks of its own and the same random signs."""
    model, tokens = tiny_model(), tiny_tokens(3)
    calibration = Calibration(model, tokens)
    site = ffns(calibration)[1]
    importance = measure(calibration, [site], tokens, seed=7)

    seen = {}
    down = model.model.layers[site.layer].mlp.down_proj
    hook = down.register_forward_hook(lambda m, args, out: (out.retain_grad(), seen.update(z=args[0], y=out))[0])
    generator, z, g = torch.Generator().manual_seed(7), [], []
    for window in tokens:
        logits = model(window[None]).logits[0]
        signs = torch.randint(0, 2, logits.shape, dtype=torch.float, generator=generator) * 2 - 1
        p = logits.detach().double().softmax(-1)
        roots = p.sqrt()
        factors = [roots[t].diag() - torch.outer(p[t], roots[t]) for t in range(len(p))]
        wanted = [factor @ signs[t].double() for t, factor in enumerate(factors)]  # gradients with respect to the logits
        logits.backward(torch.stack(wanted).float())
        z += list(seen["z"][0].detach().double().numpy())
        g += list(seen["y"].grad[0].double().numpy())
    hook.remove()
    z, g, w = np.array(z), np.array(g), down.weight.detach().double().numpy().T
    expected = [np.mean(((z[:, j] - z[:, j].mean()) * (g @ w[j])) ** 2) for j in range(len(w))]
    np.testing.assert_allclose(importance[site].numpy(), expected, rtol=1e-4)
    assert all(p.requires_grad for p in model.parameters())


def test_the_random_gradient_has_the_second_derivative_of_the_divergence_as_its_covariance():
    logits = torch.tensor([0.5, -1.0, 3.0, 0.0, 1.0], dtype=torch.float64)

    def divergence(change):
        p, q = (x.log_softmax(-1) for x in (logits, logits + change))
        return (p.exp() * (p - q)).sum()

    expected = torch.autograd.functional.hessian(divergence, torch.zeros_like(logits))
    draws = random_gradient(logits.expand(40000, 5), torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.T @ draws / len(draws), expected, rtol=0.05, atol=0.005)
    torch.testing.assert_close(draws.mean(0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_the_least_important_neurons_go_and_no_more_than_needed(least):
    sites = ffns(Calibration(tiny_model(), tiny_tokens(2)))
    generator = torch.Generator().manual_seed(1)
    importance = {site: torch.rand(site.hidden, generator=generator) * 2.0**i for i, site in enumerate(sites)}
    per_neuron = sites[0].parameters // sites[0].hidden
    goal = 0.3 * sum(site.parameters for site in sites)
    kept = numbers_to_keep(importance, goal, least)
    assert kept and (len(kept) < len(sites)) == (least > 0)
    saved = sum((site.hidden - number) * per_neuron - site.width for site, number in kept.items())
    assert goal <= saved < goal + per_neuron
    sorted_ones = {site: importance[site].sort().values for site in kept}
    worst_gone = max(sorted_ones[site][site.hidden - number - 1] for site, number in kept.items())
    best_kept = min(sorted_ones[site][site.hidden - number] for site, number in kept.items())
    assert worst_gone < best_kept
    assert all(site.hidden - number >= max(least * site.hidden, 1) for site, number in kept.items())


@pytest.mark.parametrize("number", [1, 4])
def test_what_is_kept_is_ridge_regression_towards_the_own_weights(number):
    model, tokens = tiny_model(), tiny_tokens(16)
    site, core = ffns(Calibration(model, tokens))[1], model.model.layers[1].mlp
    seen = {}
    hooks = [
        core.down_proj.register_forward_pre_hook(lambda m, args: seen.update(z=args[0])),
        core.register_forward_hook(lambda m, args, out: seen.update(y=out)),
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    units = [1, 3, 4, site.hidden - 1][:number]
    bypass = FittedNeurons(torch.tensor(units), ridge=0.3)
    (replacement,) = fit_one_shot(Calibration(model, tokens), {site: bypass})
    assert sum(p.numel() for p in replacement.bypass.parameters()) == bypass.parameters([site])
    z, y = (seen[key].flatten(0, 1).double().numpy() for key in "zy")
    z, own = z[:, units], core.down_proj.weight.detach().double().numpy().T[units]
    zc, yc = z - z.mean(0), y - y.mean(0)
    penalty = 0.3 * (zc.var(0) + 1e-3 * zc.var(0).mean())
    drawn = np.r_[zc, np.diag(np.sqrt(len(z) * penalty))]
    expected = own + np.linalg.lstsq(drawn, np.r_[yc - zc @ own, np.zeros_like(own)], rcond=None)[0]
    np.testing.assert_allclose(replacement.bypass[-1].weight.detach().numpy().T, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2"])
def test_an_output_norm_stays_and_what_goes_into_it_is_fitted(family):
    model, tokens = tiny_model(family), tiny_tokens(16)
    calibration = Calibration(model, tokens)
    site, layer = ffns(calibration)[1], model.model.layers[1]
    module, seen = layer.post_feedforward_layernorm, {}
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, args: seen.update(z=args[0])),
        module.register_forward_hook(lambda m, args, out: seen.update(o=args[0], y=out)),
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    found = output_norm_of(calibration.branch(site))
    torch.testing.assert_close(found(seen["o"]), seen["y"])
    units = torch.arange(site.hidden)[::2]
    whole, part = (FittedNeurons(kept, 0.3, found) for kept in (torch.arange(site.hidden), units))
    (all_kept,), (some_kept,) = (fit_one_shot(Calibration(model, tokens), {site: bypass}) for bypass in (whole, part))
    assert sum(p.numel() for p in some_kept.bypass.parameters()) == part.parameters([site])
    with torch.no_grad():
        torch.testing.assert_close(all_kept.bypass[-1](all_kept.bypass[-2](seen["z"])), seen["y"], rtol=1e-3, atol=1e-4)
    z, o = (seen[key].flatten(0, 1).double() for key in "zo")
    z, own = z[:, units], layer.mlp.down_proj.weight.detach().double().T[units]
    zc, oc = z - z.mean(0), o - o.mean(0)
    penalty = 0.3 * (zc.var(0, correction=0) + 1e-3 * zc.var(0, correction=0).mean())
    drawn = torch.cat([zc, (len(z) * penalty).sqrt().diag()])
    expected = own + torch.linalg.lstsq(drawn, torch.cat([oc - zc @ own, torch.zeros_like(own)])).solution
    torch.testing.assert_close(some_kept.bypass[-2].weight.detach().T.double(), expected, rtol=1e-3, atol=1e-5)


def test_what_is_to_go_into_the_norm_gives_the_target_to_first_order():
    model, tokens = tiny_model("gemma3_text"), tiny_tokens(2)
    calibration = Calibration(model, tokens)
    site = ffns(calibration)[1]
    norm = output_norm_of(calibration.branch(site))
    bypass = FittedNeurons(torch.arange(8), 0.3, norm)
    with torch.no_grad(), watch(model, site) as seen:
        model(tokens)
    gave = seen.before_norm
    torch.testing.assert_close(bypass.targets(seen, seen.y), gave)
    change = gave.std() * torch.randn(gave.shape, generator=torch.Generator().manual_seed(0))
    wanted = norm(gave + 0.1 * change)
    left = norm(bypass.targets(seen, wanted)) - wanted
    assert left.norm() < 0.01 * (wanted - seen.y).norm()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2"])
def test_a_model_loses_neurons_and_keeps_every_attention(family, tmp_path):
    made = recipe(selector="fisher", budget="parameters", sparsity=0.25, fitting="sequential", target="corrected")
    dense = tiny_model(family)
    layers = sum(p.numel() for p in dense.model.layers.parameters())
    norms = sum(p.numel() for name, p in dense.model.layers.named_parameters() if "norm" in name)
    result = compress_model(dense, tiny_tokens(32), made, evaluation=tiny_tokens(4))
    size = result.record["size"]
    assert all(name.startswith("ffn") for name in result.record["selected"])
    assert size["before"]["parameters"] - size["after"]["parameters"] >= 0.25 * (layers - norms)
    save(result.model, tiny_tokenizer(), result.record, str(tmp_path / "model"), lambda record, path: None)
    tokens = tiny_tokens(2)
    with torch.no_grad():
        expected = result.model(tokens).logits
        torch.testing.assert_close(subfit.load(tmp_path / "model")[0](tokens).logits, expected)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
        torch.testing.assert_close(opened(tokens).logits, expected)


@pytest.mark.parametrize(
    ("family", "options", "given", "message"),
    [
        ("llama", {}, {}, "fisher: it takes out neurons, which are no submodules; give the budget parameters"),
        ("llama", {}, {"sparsity": 0.9}, "do not save .* parameters; give a lower sparsity"),
        ("mixtral", {}, {"sparsity": 0.1}, "no FeedForward that may be replaced has neurons"),
        ("llama", {"least": 1.0}, {}, "least is 1.0; it must be at least 0 and less than 1"),
        ("llama", {"windows": 0}, {}, "windows is 0"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(family, options, given, message):
    with pytest.raises(SubFitError, match=message):
        budget = {"budget": "parameters", **given} if given else {}
        compress_model(tiny_model(family), tiny_tokens(4), recipe(selector=Fisher(**{**SMALL, **options}), **budget))
