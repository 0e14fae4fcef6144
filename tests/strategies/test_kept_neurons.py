"""Kept neurons against naive formulas, in every architecture that has them."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES, Given, recipe, tiny_model, tiny_tokens
from pairs import sums

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.kept_units import low_rank_beside
from subfit.fitting.one_shot import fit_one_shot
from subfit.fitting.regression import centre
from subfit.model.activations import Branch
from subfit.model.discovery import find_sites
from subfit.pipeline import compress_model
from subfit.strategies.bypasses.kept_neurons import KeptNeurons, hidden_layers

DENSE_FFN = [family for family in FAMILIES if family != "mixtral"]
WIDTH, HIDDEN, OUT = 5, 7, 5


def ffn_of(model):
    return next(site for site in find_sites(model) if site.name == "ffn.1")


@pytest.mark.parametrize("family", DENSE_FFN)
def test_all_neurons_of_a_feed_forward_are_the_feed_forward(family):
    model = tiny_model(family)
    site = ffn_of(model)
    found, core = hidden_layers(Branch(site, model)), model.get_submodule(site.path)
    x = torch.randn(6, site.width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = core(x[None])[0]
        output = model.get_submodule(site.output_projection)
        gave = torch.nn.Sequential(*found.of(torch.arange(site.hidden)))(x) @ found.output
        torch.testing.assert_close(gave if output.bias is None else gave + output.bias, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("options", [{"share": 0.3}, {"share": 0.2, "neurons": 1.0}, {"share": 0.2, "neurons": 0.0}])
def test_its_size_is_what_it_says_and_within_its_share(family, options):
    model, bypass = tiny_model(family), KeptNeurons(**options)
    calibration = Calibration(model, tiny_tokens(8))
    site = ffn_of(model)
    (replacement,) = fit_one_shot(calibration, {site: bypass})
    added = sum(p.numel() for p in replacement.bypass.parameters())
    assert added == bypass.parameters([site]) <= options["share"] * site.parameters
    names = {type(module).__name__ for module in replacement.bypass.modules()}
    assert ("Product" in names) == (family != "gpt2" and options.get("neurons") != 0.0)


def data(seed: int, tokens: int = 300):
    """Inputs, hidden units that depend on them in part, and targets that need both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + 2
    z = np.maximum((x - 2) @ rng.normal(size=(WIDTH, HIDDEN)), 0) * rng.uniform(0.1, 3, HIDDEN)
    y = z @ rng.normal(size=(HIDDEN, OUT)) + x @ rng.normal(size=(WIDTH, OUT)) + rng.normal(size=(tokens, OUT))
    return x, z, y


def ridged_lstsq(inputs, y, penalties):
    rows = np.r_[inputs, np.diag(np.sqrt(len(inputs) * penalties))]
    return np.linalg.lstsq(rows, np.r_[y, np.zeros((len(penalties), y.shape[1]))], rcond=None)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_the_low_rank_map_beside_neurons_is_optimal(seed, ridge):
    """As good as the best of alternating least squares from many starts, and as plain least squares at full rank."""
    x, z, y = data(seed)
    kept = [1, 4, 5]
    c = centre(sums(np.c_[x, z], y))
    chosen = torch.tensor([*range(WIDTH), *(WIDTH + k for k in kept)])
    xc, zc, yc = (part - part.mean(0) for part in (x, z[:, kept], y))
    penalties = ridge * np.r_[np.full(WIDTH, (xc**2).mean()), np.full(len(kept), (zc**2).mean())]

    def loss(w, v):
        error = ((yc - xc @ w - zc @ v) ** 2).sum() / len(x)
        return error + penalties[0] * (w**2).sum() + penalties[-1] * (v**2).sum()

    full = ridged_lstsq(np.c_[xc, zc], yc, penalties)
    a, b, v = (part.numpy() for part in low_rank_beside(c, chosen, WIDTH, WIDTH, ridge))
    np.testing.assert_allclose(np.r_[a @ b, v], full, rtol=1e-6, atol=1e-8)

    rank, best, rng = 2, np.inf, np.random.default_rng(seed)
    for _ in range(10):
        basis = np.linalg.qr(rng.normal(size=(WIDTH, rank)))[0]
        for _ in range(200):
            w, _ = _given_columns(xc, zc, yc, basis, penalties)
            basis = np.linalg.svd(_given_rows(xc, zc, yc, w, penalties), full_matrices=False)[0][:, :rank]
        best = min(best, loss(*_given_columns(xc, zc, yc, basis, penalties)))
    a, b, v = (part.numpy() for part in low_rank_beside(c, chosen, WIDTH, rank, ridge))
    assert loss(a @ b, v) <= best * (1 + 1e-6)


def _given_columns(x, z, y, basis, penalties):
    """The best maps whose x part is basis (orthonormal columns) times something."""
    rank = basis.shape[1]
    found = ridged_lstsq(np.c_[x @ basis, z], y, np.r_[np.full(rank, penalties[0]), penalties[x.shape[1] :]])
    return basis @ found[:rank], found[rank:]


def _given_rows(x, z, y, w, penalties):
    """The best x part whose rows lie in the row space of w."""
    rows = np.linalg.svd(w)[2][: np.linalg.matrix_rank(w)]
    v = ridged_lstsq(np.c_[x, z], y, penalties)[x.shape[1] :]
    return ridged_lstsq(x, (y - z @ v) @ rows.T, penalties[: x.shape[1]]) @ rows


@pytest.mark.parametrize("neurons", [0.5, 1.0])
def test_the_maps_are_ridge_regression_towards_the_prior(neurons):
    """Against least squares on the tokens, and rows that draw V to the own weights; the map of x, if any, has full rank."""
    model, tokens = tiny_model(), tiny_tokens(16)
    site, core = ffn_of(model), model.model.layers[1].mlp
    bypass = KeptNeurons(share=1.2, neurons=neurons, ridge=0.1, prior="weights")
    seen = {}
    with torch.no_grad(), core.register_forward_hook(lambda m, args, output: seen.update(x=args[0], y=output)):
        model(tokens)
    (replacement,) = fit_one_shot(Calibration(model, tokens), {site: bypass})
    found = replacement.bypass
    low_rank, kept = (None, found) if neurons == 1.0 else (found[0], found[1])
    with torch.no_grad():
        z = kept[0](seen["x"]).flatten(0, 1).double().numpy()
    x, y = (seen[name].flatten(0, 1).double().numpy() for name in "xy")
    rows = [int((core.gate_proj.weight == row).all(1).nonzero()) for row in kept[0][0][0].weight]
    own = core.down_proj.weight.detach().double().numpy().T[rows]
    inputs = [z] if low_rank is None else [x, z]
    centred = [part - part.mean(0) for part in inputs]
    penalties = np.concatenate([np.full(part.shape[1], 0.1 * (part**2).mean()) for part in centred])
    goal = y - y.mean(0) - centred[-1] @ own
    best = ridged_lstsq(np.concatenate(centred, 1), goal, penalties)
    v = kept[-1].weight.detach().double().numpy().T
    np.testing.assert_allclose(v - own, best[-len(own) :], rtol=1e-3, atol=1e-5)
    if low_rank is not None:
        a, b = (layer.weight.detach().double().numpy().T for layer in low_rank)
        np.testing.assert_allclose(a @ b, best[: len(best) - len(own)], rtol=1e-3, atol=1e-5)


def test_the_units_with_the_most_unexplained_energy_are_kept():
    model, tokens = tiny_model(), tiny_tokens(16)
    site, bypass = ffn_of(model), KeptNeurons(share=0.3, neurons=1.0, ridge=0.0)
    seen = {}
    core = model.get_submodule(site.path)
    hooks = [
        core.register_forward_pre_hook(lambda m, args: seen.update(x=args[0])),
        core.down_proj.register_forward_pre_hook(lambda m, args: seen.update(z=args[0])),
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    x, z = (seen[name].flatten(0, 1).double().numpy() for name in "xz")
    left = (z - z.mean(0)) - (x - x.mean(0)) @ np.linalg.lstsq(x - x.mean(0), z - z.mean(0), rcond=None)[0]
    energy = left.var(0) * (core.down_proj.weight.detach().double().numpy() ** 2).sum(0)
    (replacement,) = fit_one_shot(Calibration(model, tokens), {site: bypass})
    gate = replacement.bypass[0][0][0].weight
    expected = core.gate_proj.weight[np.sort(np.argsort(-energy)[: len(gate)])]
    torch.testing.assert_close(gate, expected)


def test_neurons_that_are_all_kept_lose_nothing():
    model, tokens = tiny_model(), tiny_tokens(40)
    given = {"selector": Given(["ffn.1"]), "ffn_bypass": KeptNeurons(share=1.2, neurons=1.0, ridge=0.0)}
    with torch.no_grad():
        before = model(tokens).logits
        after = compress_model(model, tokens, recipe(**given)).model(tokens).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_what_has_no_neurons_is_refused():
    for given, message in (
        ({"attention_bypass": KeptNeurons()}, "attention.1 has no hidden units; use it for FeedForwards"),
        ({"ffn_bypass": KeptNeurons(share=0.001)}, "less than one neuron"),
    ):
        with pytest.raises(SubFitError, match=message):
            compress_model(tiny_model(), tiny_tokens(), recipe(selector=Given(["attention.1", "ffn.1"]), **given))
    with pytest.raises(SubFitError, match="ffn.1 has no single output projection"):
        compress_model(tiny_model("mixtral"), tiny_tokens(), recipe(selector=Given(["ffn.1"]), ffn_bypass=KeptNeurons()))
    with pytest.raises(SubFitError, match="neurons 1.5; give above 0"):
        KeptNeurons(neurons=1.5)
