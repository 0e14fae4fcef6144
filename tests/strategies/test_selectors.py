from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pairs
import pytest
import torch
from conftest import KINDS, Given, recipe, tiny_model, tiny_tokens

from subfit import registry
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.budget import Budget
from subfit.fitting.costs import UNITS, site_costs
from subfit.fitting.trials import Trials, fitted_everywhere
from subfit.model.residual_stream import ResidualStream
from subfit.pipeline import compress_model

TRIAL = {"windows": 4, "length": 16}
OPTIONS = {  # one entry for every selector
    "contiguous": {},
    "evolutionary": {"generations": 3, "offspring": 3, **TRIAL},
    "fisher": TRIAL,
    "given": {"sites": ["attention.1", "attention.2", "ffn.1", "ffn.2"]},
    "global_ranking": {},
    "greedy": {"rounds": 2, **TRIAL},
    "greedy_library": {"attention": ["low_rank"], "ffn": ["low_rank"], "fitted_on": 4, **TRIAL},
    "integer_programme": {},
    "library": {"attention": ["low_rank"], "ffn": ["low_rank"], "fitted_on": 4, **TRIAL},
    "per_type": {},
    "random": {},
    "whole_layers": {},
}
STEPS = {"greedy": {"rounds": "each", "pool": 4.0}, "evolutionary": {"generations": 8}}  # searches that try much
NEURONS = {"fisher"}  # which take out neurons, not whole sites, see test_fisher.py
PER_TYPE = {"contiguous", "evolutionary", "given", "greedy", "per_type", "random", "whole_layers"}


@pytest.fixture(scope="module")
def calibration():
    return Calibration(tiny_model(), tiny_tokens(), batch_size=4)


@pytest.fixture(scope="module")
def scores(calibration):
    generator = torch.Generator().manual_seed(3)
    return {site: float(torch.rand((), generator=generator)) for site in calibration.sites}


def budget_of(calibration, sparsity=0.5, unit="submodules", **given):
    made = recipe(**given)
    return Budget(calibration, {"attention": made.attention_bypass, "ffn": made.ffn_bypass}, sparsity, unit)


def selector(name, **options):
    return registry.make("selectors", {"class_path": name, "init_args": {**OPTIONS[name], **options}})


def names(sites):
    return sorted(site.name for site in sites)


@pytest.mark.parametrize("name", sorted(set(registry.names("selectors")) - NEURONS))
def test_every_selector_keeps_to_its_budget_and_spares_what_is_protected(name, calibration, scores):
    allowed = {site: score for site, score in scores.items() if site.name not in ("attention.0", "ffn.0", "attention.3")}
    found = [list(selector(name).select(dict(allowed), budget_of(calibration), calibration)) for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0]) == 4 and set(found[0]) <= set(allowed)
    if name in PER_TYPE:
        assert [site.kind for site in found[0]].count("attention") == 2


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"given"} - NEURONS))
def test_every_selector_reaches_the_goal_in_every_unit_net_of_the_bypasses(name, unit, calibration, scores):
    budget = budget_of(calibration, 0.3, unit)
    chosen = selector(name).select(dict(scores), budget, calibration)
    saved, goal = sum(budget.savings()[site] for site in chosen), budget.goal()
    assert saved >= goal * (1 - 1e-9)
    if name not in ("contiguous", "whole_layers"):  # these take whole layers
        largest = max(budget.savings().values())
        assert saved <= goal + len(KINDS) * largest  # no more than the last site of each type too much


def test_what_a_budget_says_is_saved_is_what_the_compressed_model_has_less():
    for bypass in ("linear", "low_rank", "identity"):
        for unit, size in (("parameters", "parameters"), ("kv_bytes", "kv_bytes_per_token")):
            model = tiny_model()
            total = sum(site_costs(Calibration(model, tiny_tokens()), unit).values())
            made = recipe(sparsity=0.4, budget=unit, attention_bypass=bypass, ffn_bypass=bypass)
            record = compress_model(model, tiny_tokens(), made).record["size"]
            assert record["before"][size] - record["after"][size] >= 0.4 * total


def test_flops_and_cache_of_a_site_are_those_of_the_architecture(calibration):
    d, ffn, length, kv = 32, 48, 24, 16
    flops, cache = site_costs(calibration, "flops"), site_costs(calibration, "kv_bytes")
    for site in calibration.sites:
        if site.kind == "ffn":
            assert (flops[site], cache[site]) == (2 * 3 * d * ffn, 0)
        else:
            assert flops[site] == pytest.approx(2 * (2 * d * d + 2 * d * kv) + 4 * length * d, rel=0.5)
            assert flops[site] >= 2 * (2 * d * d + 2 * d * kv) and cache[site] == 2 * kv * 4
    assert all(seconds > 0 for seconds in site_costs(calibration, "latency").values())


def brute_force(scores, allowed):
    """The selection with the lowest sum of scores among those that are allowed."""
    sites = list(scores)
    every = (set(chosen) for size in range(len(sites) + 1) for chosen in combinations(sites, size))
    return min((chosen for chosen in every if allowed(chosen)), key=lambda chosen: sum(scores[s] for s in chosen))


def count(chosen, kind):
    return sum(site.kind == kind for site in chosen)


def layers(chosen):
    return {site.layer for site in chosen}


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("per_type", lambda chosen: count(chosen, "attention") == count(chosen, "ffn") == 2),
        ("global_ranking", lambda chosen: len(chosen) == 4),
        ("whole_layers", lambda chosen: len(chosen) == 4 and len(layers(chosen)) == 2),
        ("integer_programme", lambda chosen: len(chosen) == 4),
    ],
)
def test_optimal_against_brute_force(name, allowed, calibration, scores):
    found = selector(name).select(dict(scores), budget_of(calibration), calibration)
    assert set(found) == brute_force(scores, allowed)


@pytest.mark.parametrize("per_type", [False, True])
def test_the_integer_programme_is_optimal_under_several_budgets(per_type, calibration, scores):
    budget = budget_of(calibration, 0.3, "parameters")
    parameters, kv = budget.savings(), budget.savings("kv_bytes")
    goals = [budget.goal(kind) for kind in KINDS]

    def allowed(chosen):
        saved = [sum(parameters[s] for s in chosen if s.kind == kind) for kind in KINDS]
        enough = all(s >= g for s, g in zip(saved, goals, strict=True)) if per_type else sum(saved) >= sum(goals)
        return enough and sum(kv[s] for s in chosen) >= 0.6 * sum(kv.values())

    found = selector("integer_programme", also={"kv_bytes": 0.6}, per_type=per_type).select(scores, budget, calibration)
    assert set(found) == brute_force(scores, allowed)


@pytest.mark.parametrize("per_type", [False, True])
def test_a_library_is_optimal_against_brute_force(per_type, calibration, scores):
    """What each choice costs is measured here by itself; each site has one of two bypasses, or stays."""
    own = {"attention": ["low_rank", "mean"], "ffn": [{"class_path": "kept_neurons", "init_args": {"share": 0.5}}, "mean"]}
    made = selector("library", **own, per_type=per_type)
    library = made.library
    budget = budget_of(calibration, 0.3, "parameters")
    chosen = made.select(dict(list(scores.items())[2:]), budget, calibration)  # those of layer 0 are protected
    sites = list(scores)[2:]
    windows = calibration.subset(8, 24)
    fitted = Calibration(calibration.model, windows[[1, 3, 5, 7]], 4)
    ways: dict[str, list] = {}
    for kind in KINDS:
        for bypass in getattr(library, kind):
            trials = Trials(fitted, fitted_everywhere(fitted, bypass, (kind,)), windows[[0, 2, 4, 6], :16])
            saved = Budget(calibration, {kind: bypass}, 0.3, "parameters").savings()
            for site in (site for site in sites if site.kind == kind):
                ways.setdefault(site.name, [(0.0, 0.0)]).append((saved[site], trials.costs((), [[site]])[0]))

    def goals_met(choice):
        parts = {kind: sum(w[0] for site, w in zip(sites, choice, strict=True) if site.kind == kind) for kind in KINDS}
        return all(parts[k] >= budget.goal(k) for k in KINDS) if per_type else sum(parts.values()) >= budget.goal()

    best = min(filter(goals_met, product(*(ways[site.name] for site in sites))), key=lambda c: sum(w[1] for w in c))
    positions = {site: 1 + getattr(library, site.kind).index(bypass) for site, bypass in chosen.items()}
    found = tuple(ways[site.name][positions.get(site, 0)] for site in sites)
    assert goals_met(found) and sum(w[1] for w in found) == pytest.approx(sum(w[1] for w in best), rel=1e-6)


@pytest.mark.parametrize("name", ["library", "greedy_library"])
def test_what_a_library_chooses_is_what_is_put_in(name):
    model = tiny_model()
    own = {"attention": [], "ffn": ["mean"], "fitted_on": 4, **TRIAL}
    made = recipe(selector=selector(name, **own), budget="parameters", sparsity=0.2, fitting="sequential")
    result = compress_model(model, tiny_tokens(), made)
    assert result.record["selected"] and all(name.startswith("ffn") for name in result.record["selected"])
    assert result.record["size"]["added_parameters"] == 32 * len(result.record["selected"])


def test_the_integer_programme_is_optimal_to_the_last_digit():
    rng = np.random.default_rng(7)
    saved = rng.integers(500, 1000, 100)
    cost = saved + rng.uniform(0, 20, 100)  # many selections are nearly as good as the best
    goal = int(saved.sum() * 0.25)
    least = np.r_[0.0, np.full(saved.sum(), np.inf)]  # the least cost for each sum of what is saved
    for c, s in zip(cost, saved, strict=True):
        least[s:] = np.minimum(least[s:], least[:-s] + c)
    sites = [pairs.site(layer) for layer in range(100)]
    budget = SimpleNamespace(
        savings=lambda unit=None: dict(zip(sites, map(float, saved), strict=True)), goal=lambda *kinds: goal
    )
    found = selector("integer_programme").select(dict(zip(sites, cost, strict=True)), budget, None)
    assert sum(cost[s.layer] for s in found) == pytest.approx(least[goal:].min(), rel=1e-9)


def test_weights_of_the_types_shift_a_global_ranking(calibration, scores):
    budget = budget_of(calibration)
    found = selector("global_ranking", attention_weight=1e-6).select(scores, budget, calibration)
    assert count(found, "attention") == 4


@pytest.mark.parametrize(("distance", "tokens"), [("angle", "all"), ("angle", "last"), ("cosine", "all")])
def test_contiguous_equals_hidden_states(distance, tokens, scores):
    model, data = tiny_model(num_hidden_layers=6), tiny_tokens()
    calibration = Calibration(model, data, batch_size=4)
    any_score = dict.fromkeys(calibration.sites, 1.0)
    found = selector("contiguous", distance=distance, tokens=tokens).select(any_score, budget_of(calibration), calibration)
    streams = []
    hooks = [layer.register_forward_pre_hook(lambda m, args: streams.append(args[0])) for layer in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda m, args: streams.append(args[0])))
    with torch.no_grad():
        model(data)
    for hook in hooks:
        hook.remove()
    moved = []
    for first in range(4):
        cosine = torch.cosine_similarity(streams[first].double(), streams[first + 3].double(), dim=-1)
        cosine = cosine[:, -1] if tokens == "last" else cosine
        moved.append(float((cosine.arccos() if distance == "angle" else 1 - cosine).mean()))
    best = min(range(4), key=moved.__getitem__)
    assert names(found) == sorted(f"{kind}.{best + i}" for kind in KINDS for i in range(3))


def test_contiguous_runs_of_any_length_take_one_pass(monkeypatch, scores):
    calibration, passes, start = Calibration(tiny_model(), tiny_tokens(), batch_size=4), [], ResidualStream.__init__
    monkeypatch.setattr(ResidualStream, "__init__", lambda *given: passes.append(given) or start(*given))
    for sparsity in (0.25, 0.5):
        for distance, tokens in (("angle", "all"), ("angle", "last"), ("cosine", "all")):
            chosen = selector("contiguous", distance=distance, tokens=tokens)
            chosen.select(scores, budget_of(calibration, sparsity), calibration)
    assert len(passes) == len(calibration.tokens)  # a window each


def test_contiguous_by_scores_and_without_a_run(calibration, scores):
    found = selector("contiguous", distance="scores").select(scores, budget_of(calibration), calibration)
    sums = [sum(s for site, s in scores.items() if site.layer in (i, i + 1)) for i in range(3)]
    assert layers(found) == {sums.index(min(sums)), sums.index(min(sums)) + 1}
    apart = {site: score for site, score in scores.items() if site.layer in (0, 2)}
    with pytest.raises(SubFitError, match="no 2 consecutive layers without a protected site"):
        selector("contiguous").select(apart, budget_of(calibration), calibration)


@pytest.mark.parametrize(("unit", "measure"), [("submodule", "kl"), ("layer", "loss")])
def test_greedy_without_bypasses_equals_a_naive_search(unit, measure, calibration, scores):
    """SLEB and BlockPruner: each time, drop what costs least given what was dropped before."""
    drop = {"bypass": "identity", "rounds": "each", "pool": 2.0, "unit": unit, "measure": measure, **TRIAL}
    bypassed = fitted_everywhere(calibration, registry.make("bypasses", "identity"))
    trials = Trials(calibration, bypassed, calibration.subset(4, 16))

    def cost(chosen):
        return trials.costs((), [chosen], measure)[0]

    groups = (
        [tuple(s for s in scores if s.layer == layer) for layer in range(4)]
        if unit == "layer"
        else [(site,) for site in scores]
    )
    alone = {site: cost([site]) for site in scores}
    found = selector("greedy", **drop).select(alone, budget_of(calibration), calibration)
    chosen: list = []
    costs = {group: sum(alone[site] for site in group) for group in groups}
    for _ in range(2):
        left = [group for group in groups if group[0] not in chosen]
        if chosen:
            costs = {group: cost([*chosen, *group]) for group in left}
        for part in [left] if unit == "layer" else [[g for g in left if g[0].kind == kind] for kind in KINDS]:
            chosen += min(part, key=costs.__getitem__)
    assert names(found) == names(chosen)


def low_rank_trials(calibration):
    bypassed = fitted_everywhere(calibration, registry.make("bypasses", "low_rank"))
    return Trials(calibration, bypassed, calibration.subset(4, 16))


def test_a_search_never_ends_worse_than_the_lowest_scores(calibration, scores):
    trials = low_rank_trials(calibration)
    start = selector("per_type").select(scores, budget_of(calibration), calibration)
    found = selector("evolutionary", generations=8).select(scores, budget_of(calibration), calibration)
    before, after = trials.costs((), [start, found])
    assert after < before


LIBRARY = {"attention": ["low_rank", "mean"], "ffn": [{"class_path": "kept_neurons", "init_args": {"share": 0.5}}, "mean"]}


def test_a_greedy_library_equals_a_naive_search(calibration, scores):
    """Each time, what raises the divergence of whole runs least for each parameter that is saved and still missing."""
    made = selector("greedy_library", **LIBRARY, pool=4.0)
    budget = budget_of(calibration, 0.4, "parameters")
    found = made.select(scores, budget, calibration)
    ways, trials = made.library.tried(scores, budget, calibration)
    with torch.no_grad():
        dense = calibration.model(trials.tokens).logits[:, :-1].double().log_softmax(-1)

    @torch.no_grad()
    def divergence(chosen):
        for way in chosen:
            trials.replacements[way].on()
        other = calibration.model(trials.tokens).logits[:, :-1].double().log_softmax(-1)
        for way in chosen:
            trials.replacements[way].off()
        return float((dense.exp() * (dense - other)).sum(-1).mean())

    chosen: list = []
    missing = 0.4 * sum(site.parameters for site in calibration.sites)
    while missing > 0:

        def price(way, missing=missing):
            saved = way[0].parameters - way[1].parameters([way[0]])
            return (divergence([*chosen, way]) - divergence(chosen)) / min(saved, missing)

        chosen.append(min((way for way in ways if way[0] not in dict(chosen)), key=price))
        missing -= chosen[-1][0].parameters - chosen[-1][1].parameters([chosen[-1][0]])
    assert found == dict(chosen) and len(found) > 2


@pytest.mark.parametrize("rounds", ["each", 1, 2])
@pytest.mark.parametrize("pool", [1.0, 2.0])
def test_a_greedy_library_reaches_what_can_be_reached(rounds, pool, calibration, scores):
    """Only the smaller bypass in every FeedForward saves enough, however much less the larger one loses."""
    larger = {"class_path": "kept_neurons", "init_args": {"share": 0.9}}
    made = selector("greedy_library", attention=[], ffn=[larger, "mean"], rounds=rounds, pool=pool)
    found = made.select(scores, budget_of(calibration, 0.58, "parameters"), calibration)
    assert [(site.kind, type(bypass).__name__) for site, bypass in found.items()] == [("ffn", "Mean")] * 4
    with pytest.raises(SubFitError, match="1.997e.04 parameters are to be saved, and the bypasses .* save 1.83e.04 at most"):
        made.select(scores, budget_of(calibration, 0.65, "parameters"), calibration)
    assert made.select(scores, budget_of(calibration, 0.0, "parameters"), calibration) == {}


def test_a_small_pool_and_few_rounds_take_fewer_trials(calibration, scores, monkeypatch):
    measured, measure = [], Trials._measure
    monkeypatch.setattr(Trials, "_measure", lambda *given: measured.append(given) or measure(*given))
    numbers = []
    for options in ({"pool": 4.0}, {"pool": 1.0}, {"rounds": 2}, {"rounds": 1}):
        measured.clear()
        selector("greedy_library", **LIBRARY, **options).select(
            scores, budget_of(calibration, 0.4, "parameters"), calibration
        )
        numbers.append(len(measured))
    assert numbers[0] > numbers[1] > numbers[3] and numbers[0] > numbers[2] > numbers[3] == 16  # each bypass alone


@pytest.mark.parametrize("name", ["greedy", "evolutionary"])
def test_a_search_within_another_budget_repeats_no_trial(name, scores, monkeypatch):
    measured, measure = [], Trials._measure
    monkeypatch.setattr(Trials, "_measure", lambda *given: measured.append(given) or measure(*given))

    def search(calibration, *sparsities):
        """The selections, and what it took to find them."""
        measured.clear()
        chosen = (selector(name, **STEPS[name]).select(scores, budget_of(calibration, s), calibration) for s in sparsities)
        return [names(sites) for sites in chosen], len(measured)

    def fresh():
        return Calibration(tiny_model(), tiny_tokens(), batch_size=4)

    (small,), few = search(fresh(), 0.5)
    (large,), many = search(fresh(), 0.75)
    both, together = search(shared := fresh(), 0.5, 0.75)
    assert both == [small, large] and few > 0
    # selections of different sizes have nothing in common, but the steps towards them
    assert together < few + many if name == "greedy" else together == few + many
    assert search(shared, 0.75, 0.5) == ([large, small], 0)


def test_trials_of_groups_equal_a_full_run(calibration, scores):
    trials = low_rank_trials(calibration)
    sites = calibration.sites
    groups = [[sites[6], sites[1]], [sites[3]], []]
    found = trials.costs([sites[4]], groups)
    with torch.no_grad():
        dense = calibration.model(trials.tokens).logits[:, :-1].double().log_softmax(-1)
        for group, cost in zip(groups, found, strict=True):
            for site in [sites[4], *group]:
                trials.replacements[site].on()
            other = calibration.model(trials.tokens).logits[:, :-1].double().log_softmax(-1)
            for site in [sites[4], *group]:
                trials.replacements[site].off()
            assert cost == pytest.approx(float((dense.exp() * (dense - other)).sum(-1).mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("greedy", {"rounds": 0}, "both must be at least 1"),
        ("evolutionary", {"offspring": 0}, "must be at least 1"),
        ("global_ranking", {"ffn_weight": 0.0}, "both must be positive"),
        ("integer_programme", {"also": {"bytes": 0.5}}, "units are submodules, parameters"),
        ("library", {"attention": [], "ffn": []}, "no bypass to choose from"),
        ("greedy_library", {"attention": [], "ffn": []}, "no bypass to choose from"),
        ("greedy_library", {"pool": 0.5}, "both must be at least 1"),
        ("greedy_library", {"attention": []}, "4 submodules are to be saved, and .* save 3 at most"),
        ("integer_programme", {"also": {"kv_bytes": 0.99}}, "cannot be met together"),
        ("given", {"sites": ["ffn.9"]}, "no site that may be replaced is called 'ffn.9'"),
    ],
)
def test_bad_options_are_one_clear_error(name, options, message, calibration, scores):
    with pytest.raises(SubFitError, match=message):
        few = {site: score for site, score in scores.items() if site.layer < 3}
        selector(name, **options).select(few, budget_of(calibration), calibration)


def test_protected_sites_are_never_replaced_whatever_they_score():
    made = recipe(sparsity=0.5, protect=["layer.0", "layer.-1"])
    selected = compress_model(tiny_model(), tiny_tokens(), made).record["selected"]
    assert sorted(selected) == ["attention.1", "attention.2", "ffn.1", "ffn.2"]
    with pytest.raises(SubFitError, match="no site is called 'ffn.4'"):
        compress_model(tiny_model(), tiny_tokens(), recipe(protect=["ffn.4"]))
    made = recipe(sparsity=0.5, protect=["layer.0", "layer.1", "ffn.2"])
    with pytest.raises(SubFitError, match="cannot be reached: all FeedForwards that may be replaced save 1 submodules"):
        compress_model(tiny_model(), tiny_tokens(), made)


def test_greedy_selection_keeps_to_its_budget_and_beats_the_worst_choice():
    made = recipe(scorer="kl", selector="greedy", fitting="sequential", sparsity=0.5)
    result = compress_model(tiny_model(), tiny_tokens(), made, evaluation=tiny_tokens(4, seed=1))
    scores = result.record["scores"]
    worst = [f"{k}.{n}" for k in ("attention", "ffn") for n in sorted(range(4), key=lambda n: -scores[f"{k}.{n}"])[:2]]
    other = compress_model(
        tiny_model(), tiny_tokens(), recipe(selector=Given(worst), fitting="sequential"), evaluation=tiny_tokens(4, seed=1)
    )
    assert len(result.record["selected"]) == 4
    assert result.record["evaluation"]["kl"] < other.record["evaluation"]["kl"]
