"""What each bypass fits, against least squares and formulas on the stored pairs; and what mixtures assign."""

import copy
import itertools
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import Given, names_of, recipe, tiny_model, tiny_tokens
from pairs import D, error, fitted, lstsq, pairs, site, statistics

from subfit import registry
from subfit.errors import SubFitError
from subfit.fitting import regression
from subfit.fitting.hadamard import hadamard
from subfit.model.activations import Branch
from subfit.pipeline import compress_model
from subfit.strategies.bypasses.at_cut import AtCut
from subfit.strategies.bypasses.mlp import silu_one
from subfit.strategies.bypasses.replace_me import ReplaceMe


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_scalar_diagonal_and_mean_equal_least_squares(ridge):
    x, y = pairs()
    xc, yc = x - x.mean(0), y - y.mean(0)
    penalty = ridge * (xc**2).sum() / D  # lambda * n * mean variance
    scalar, diagonal = fitted("scalar", x, y, ridge=ridge), fitted("diagonal", x, y, ridge=ridge)
    expected = lstsq(xc.reshape(-1, 1), yc.reshape(-1, 1), D * penalty)[0]  # |w I|^2 = d w^2
    np.testing.assert_allclose(scalar.weight, expected, rtol=1e-5)
    np.testing.assert_allclose(scalar.bias, y.mean(0) - x.mean(0) * expected, rtol=1e-4)
    expected = np.array([lstsq(x[:, [k]], y[:, [k]], penalty)[0, 0] for k in range(D)])
    np.testing.assert_allclose(diagonal.weight, expected, rtol=1e-5)
    np.testing.assert_allclose(diagonal.bias, y.mean(0) - x.mean(0) * expected, rtol=1e-4)
    np.testing.assert_allclose(fitted("mean", x, y).bias, y.mean(0), rtol=1e-6)


def test_diagonal_gives_constant_features_no_weight():
    x, y = pairs()
    x[:, 3], x[:, 4] = 1000 / 3, 0.0
    for name, options in (("diagonal", {"ridge": 0.0}), ("diagonal", {}), ("low_rank_diagonal", {"rank": 2})):
        module = fitted(name, x, y, **options)
        weight = (module if name == "diagonal" else module[0]).weight
        assert weight[3] == weight[4] == 0 and (weight != 0).sum() == D - 2


@pytest.mark.parametrize("name", ["low_rank", "shared_low_rank"])
def test_factors_larger_than_their_product_are_multiplied_and_a_rank_chosen_then_is_full(name):
    x, y = pairs()
    bypass = registry.make("bypasses", name)
    assert bypass.parameters([site()]) == D * D + D
    full = fitted(name, x, y, ridge=0.1)
    expected = fitted("linear", x, y, ridge=0.1)
    np.testing.assert_allclose(full.weight, expected.weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(full.bias, expected.bias, rtol=1e-4, atol=1e-4)
    for rank in (D // 2, D // 2 - 1):
        module = fitted(name, x, y, rank=rank, ridge=0.0)
        a, b = regression.reduced_rank(regression.centre(statistics(x, y)), rank, 0.0)
        left = y - y.mean(0) - (x - x.mean(0)) @ (a @ b).numpy()
        np.testing.assert_allclose(error(module, x, y), (left**2).sum(1).mean(), rtol=1e-5)
        assert isinstance(module, torch.nn.Linear) == (2 * rank >= D)
        assert sum(p.numel() for p in module.parameters()) == registry.make(
            "bypasses", {"class_path": name, "init_args": {"rank": rank}}
        ).parameters([site()])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_diagonal_and_low_rank_together_are_better_than_either_and_better_with_every_turn(seed, ridge):
    x, y = pairs(seed=seed)
    c = regression.centre(statistics(x, y))
    xc, yc = x - x.mean(0), y - y.mean(0)

    def loss(weight):
        return ((yc - xc @ weight) ** 2).sum() / len(x) + ridge * (xc**2).sum() / len(x) / D * (weight**2).sum()

    for rank in (1, 3):
        turns = [regression.diagonal_and_low_rank(c, rank, ridge, alternations) for alternations in range(8)]
        losses = [loss((w.diag() + a @ b).numpy()) for w, a, b in turns]
        a, b = regression.reduced_rank(c, rank, ridge)
        alone = loss((a @ b).numpy()), loss(regression.diagonal_weights(c, ridge).diag().numpy())
        assert losses[0] <= min(alone) * (1 + 1e-9)
        assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(losses))
        assert losses[-1] < losses[0]
        w, a, b = turns[-1]
        assert loss((w.diag() + a @ b).numpy()) == pytest.approx(float(regression.ridged_loss(c, w.diag() + a @ b, ridge)))


def test_a_planted_diagonal_and_low_rank_map_is_found():
    x, _ = pairs()
    rng = np.random.default_rng(5)
    y = x * rng.normal(size=D) + x @ np.outer(rng.normal(size=D), rng.normal(size=D)) + 1
    module = fitted("low_rank_diagonal", x, y, rank=1, ridge=0.0, alternations=200)
    assert error(module, x, y) < 1e-3 * min(error(fitted(n, x, y), x, y) for n in ("low_rank", "diagonal"))


@pytest.mark.parametrize("by", ["share", "variance"])
def test_ranks_are_allocated_as_well_as_by_trying_all(by):
    rng = np.random.default_rng(0)
    sites = [site(layer, width=4) for layer in range(3)]
    data = []
    for size, noise in ((1, 0.1), (30, 3.0), (5, 0.0)):
        x = rng.normal(size=(50, 4)) * np.arange(1, 5)
        data.append((x, size * x @ rng.normal(size=(4, 4)) * [1, 0.3, 0.1, 0] + noise * rng.normal(size=(50, 4))))
    made = {"class_path": "allocated_low_rank", "init_args": {"by": by, "ridge": 0.0, "share": 0.0357}}
    bypass = registry.make("bypasses", made)
    total = (bypass.parameters(sites) - 3 * 4) // (2 * 4)
    assert total == 7 and bypass.parameters(sites) <= 0.0357 * sum(s.parameters for s in sites) + 1e-9
    given = [statistics(x, y) for x, y in data]
    ranks = bypass.fit_shared(sites, iter(given))

    def explained(ranks):
        found = 0.0
        for rank, (x, y) in zip(ranks, data, strict=True):
            full = (x - x.mean(0)) @ lstsq(x, y)
            part = (np.linalg.svd(full)[1][:rank] ** 2).sum()
            found += part / (((y - y.mean(0)) ** 2).sum() if by == "share" else len(x))
        return found

    best = max(explained(r) for r in itertools.product(range(1, 5), repeat=3) if sum(r) == total)
    assert sum(ranks.values()) == total and explained(ranks.values()) == pytest.approx(best, rel=1e-9)
    module = bypass.fit(Branch(sites[1], torch.nn.Module()), given[1], ranks)
    assert module[0].out_features == ranks[sites[1]]


def test_a_share_too_small_for_any_rank_is_refused():
    bypass = registry.make("bypasses", {"class_path": "allocated_low_rank", "init_args": {"share": 1e-3}})
    with pytest.raises(SubFitError, match="too few for rank 1 at each of 2 sites"):
        bypass.parameters([site(0), site(1)])


@pytest.mark.parametrize("options", [{"activation": "swiglu", "hidden": 4}, {"activation": "gelu", "hidden": 8}], ids=str)
def test_an_mlp_starts_at_the_low_rank_fit_and_gets_better(options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, D)) * np.logspace(-1, 1, D) + rng.normal(size=D)
    z = (x - x.mean(0)) / x.std(0)
    y = 7 * np.maximum(z @ rng.normal(size=(D, 3)) / 3, 0) @ rng.normal(size=(3, D)) + 2
    seen, new = (x[:3000], y[:3000]), (x[3000:], y[3000:])
    start, low_rank = fitted("mlp", *seen, steps=0, **options), fitted("low_rank", *seen, rank=4)
    inputs = torch.tensor(new[0]).float()
    torch.testing.assert_close(start(inputs), low_rank(inputs), rtol=1e-5, atol=1e-5)
    end = fitted("mlp", *seen, steps=300, learning_rate=1e-2, batch_tokens=256, **options)
    assert error(end, *new) < 0.8 * error(start, *new)
    for rate in (1e30,):  # diverges: it stays where it began
        lost = fitted("mlp", *seen, steps=20, learning_rate=rate, batch_tokens=256, **options)
        assert all(torch.equal(p, q) for p, q in zip(lost.parameters(), start.parameters(), strict=True))
    first, second = (fitted("mlp", *seen, steps=20, batch_tokens=256, **options) for _ in range(2))
    assert torch.equal(first(inputs), second(inputs))


def test_more_hidden_units_than_dimensions_start_at_the_full_fit_and_all_learn():
    x, y = pairs()
    y = y + 3 * np.abs(x)
    start, linear = fitted("mlp", x, y, hidden=2 * D, steps=0), fitted("linear", x, y)
    inputs = torch.tensor(x).float()
    torch.testing.assert_close(start(inputs), linear(inputs), rtol=1e-4, atol=1e-4)
    end = fitted("mlp", x, y, hidden=2 * D, steps=30)
    assert error(end, x, y) < error(start, x, y) and (end.down.weight != 0).any(0).all()


def test_the_gate_that_lets_everything_pass():
    assert torch.nn.functional.silu(torch.tensor(silu_one(), dtype=torch.float64)) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("width", [12, 16])
def test_linear_patch_equals_its_formula(width):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(50, width)) * np.logspace(0, 2, width)
    after = before * rng.uniform(0.5, 2, size=width) + rng.normal(size=(50, width))
    h = hadamard(width).numpy() / np.sqrt(width)
    patch = np.zeros((width, width))
    for k in range(width):
        scale = np.abs([row @ h[:, k] for row in after]).mean() / np.abs([row @ h[:, k] for row in before]).mean()
        patch += scale * np.outer(h[:, k], h[:, k])
    module = fitted("linear_patch", before, after - before)
    np.testing.assert_allclose(module.weight.T, patch - np.eye(width), atol=1e-5)
    new = rng.normal(size=(3, width))
    np.testing.assert_allclose(new + module(torch.tensor(new).float()).numpy(), new @ patch, rtol=1e-4, atol=1e-5)


class Recorded(ReplaceMe):
    """Keeps what it fits."""

    fitted: ClassVar[list] = []

    def fit(self, branch, statistics):
        self.fitted.append(super().fit(branch, statistics))
        return self.fitted[-1]


@pytest.mark.parametrize("bias", [False, True])
def test_replace_me_is_least_squares_without_a_bias_and_merges_exactly(bias):
    model, tokens = tiny_model(mlp_bias=bias), tiny_tokens(40)
    layers = model.model.layers
    if bias:
        torch.nn.init.normal_(layers[0].mlp.down_proj.bias)
    seen = {}
    hooks = [layers[i].register_forward_hook(lambda m, a, out, i=i: seen.update({i: out})) for i in (0, 2)]
    hooks.append(layers[0].mlp.register_forward_hook(lambda m, a, out: seen.update(x=out)))
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    x, y = (t.flatten(0, 1).double().numpy() for t in (seen["x"], seen[2].double() - seen[0].double()))
    cut = AtCut(Recorded(ridge=0.0))
    made = recipe(selector=Given(names_of(1, 2)), attention_bypass="identity", ffn_bypass=cut, fitting="sequential")
    merged = compress_model(copy.deepcopy(model), tokens, made).model
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    weight = Recorded.fitted[-1].weight.double().T.numpy()
    assert np.linalg.norm(weight - expected) < 1e-4 * np.linalg.norm(expected)
    layers[0].mlp.register_forward_hook(lambda m, a, out: out + Recorded.fitted[-1](out))
    for layer in layers[1:3]:
        layer.register_forward_hook(lambda m, a, out: a[0])
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_cosine_variant_turns_the_map_further_towards_its_goal():
    x, y = pairs(2000)
    y[:20] *= 50  # which decide the squared error

    def cosine(module):
        inputs, goal = torch.tensor(x).float(), torch.tensor(x + y).float()
        return float(torch.cosine_similarity(inputs + module(inputs), goal, dim=-1).mean())

    squared = fitted("replace_me", x, y)
    assert cosine(fitted("replace_me", x, y, loss="cosine", learning_rate=1e-3)) > cosine(squared) + 0.01
    unmoved = fitted("replace_me", x, y, loss="cosine", steps=0)
    assert torch.equal(unmoved.weight, squared.weight)


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_at_cut_puts_its_bypass_at_the_end_of_every_run():
    cut = registry.make("bypasses", {"class_path": "at_cut", "init_args": {"bypass": "mean"}})
    sites = [site(layer) for layer in (1, 2, 3, 6, 8, 9)]
    plan = cut.assign(sites)
    assert [s.layer for s in plan if type(plan[s]).__name__ == "Mean"] == [3, 6, 9]
    assert {type(b).__name__ for b in plan.values()} == {"Mean", "Identity"} and len(set(plan.values())) == 2
    assert list(plan) == sites and cut.parameters(sites) == 3 * D


def test_the_first_rule_that_fits_decides():
    rules = {"ffn.1?": "linear", "0-2": "mean", "attention.*": "identity", "7": "scalar"}
    made = registry.make("bypasses", {"class_path": "by_rule", "init_args": {"rules": rules, "default": "diagonal"}})
    sites = [site(layer, kind) for layer, kind in ((1, "ffn"), (2, "attention"), (3, "attention"), (7, "ffn"), (8, "ffn"))]
    sites += [site(11), site(12), site(1, "attention")]
    plan = made.assign(sites)
    expected = ["Mean", "Mean", "Identity", "Scalar", "Diagonal", "Linear", "Linear", "Mean"]
    assert [type(plan[s]).__name__ for s in sites] == expected
    assert len(set(plan.values())) == 5  # one object for each rule, so that its sites can share
    assert made.parameters(sites) == 3 * D + (D + 1) + 2 * D + 2 * (D * D + D)
