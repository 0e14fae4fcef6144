"""The formula of each scorer, against numpy or a naive run of the whole model."""

import json
import weakref
from contextlib import ExitStack
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import names_of, tiny_model, tiny_tokens

from subfit import registry
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.one_shot import fit_one_shot
from subfit.model.activations import watch
from subfit.scorer import Scorer
from subfit.strategies.bypasses.identity import Identity
from subfit.strategies.bypasses.linear import Linear
from subfit.strategies.bypasses.low_rank import LowRank
from subfit.strategies.bypasses.shared_low_rank import SharedLowRank
from subfit.strategies.scorers.canonical_correlation import CanonicalCorrelation
from subfit.strategies.scorers.explained_variance import ExplainedVariance
from subfit.strategies.scorers.file import File
from subfit.strategies.scorers.kl import KL
from subfit.strategies.scorers.loss import Loss
from subfit.strategies.scorers.neighbourhood import Neighbourhood
from subfit.strategies.scorers.rank_fusion import RankFusion
from subfit.strategies.scorers.rotation import Rotation
from subfit.strategies.scorers.subfit import SubFit
from subfit.strategies.scorers.taylor import Taylor
from subfit.strategies.scorers.weight_activation import WeightActivation

norm = np.linalg.norm
FUSION = {"class_path": "rank_fusion"}
NAMES = names_of(0, 1, 2, 3)  # of the sites of a tiny Llama


# What passes a site, against numpy.


def batches(seed=0, count=4, massive=0.0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        h, y = (torch.randn(3, 100, 16, generator=generator) for _ in range(2))
        y = 0.3 * y
        y[:, 0, 2] += massive  # the first token of a window
        yield h, h, y


def scored(parts, scorer=None) -> float:
    scorer = scorer or SubFit()
    for part in parts:
        scorer.update(*part)
    return float(scorer.compute())


def cosine(a, b):
    return (a * b).sum(-1) / norm(a, axis=-1) / norm(b, axis=-1)


def exchanged(h, y, k=10):
    """The share of its k nearest neighbours that each token exchanges, by brute force."""
    shares = []
    for window, after in zip(h, h + y, strict=True):
        for i in range(len(window)):
            near = []
            for points in (window, after):
                order = np.argsort(-cosine(points, points[i]))
                near.append(set([j for j in order if j != i][:k]))
            shares.append(1 - len(near[0] & near[1]) / k)
    return shares


REFERENCES = {
    "rotation": lambda h, y: np.arccos(cosine(h, h + y)) / np.pi,
    "magnitude": lambda h, y: norm(y, axis=-1) / norm(h, axis=-1),
    "block_influence": lambda h, y: 1 - cosine(h, h + y),
    "neighbourhood": exchanged,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_means_over_tokens_equal_numpy(name):
    parts = list(batches(count=2))
    h, y = (torch.cat([part[i] for part in parts]).double().numpy() for i in (0, 2))
    found = scored(parts, registry.make("scorers", name))
    assert found == pytest.approx(np.mean(REFERENCES[name](h, y)), rel=1e-5)


@pytest.mark.parametrize("name", ["rotation", "block_influence"])
def test_small_angles_are_exact(name):
    h = torch.tensor([[[3.0, 0.0, 0.0]]])
    y = torch.tensor([[[0.0, 3e-5, 0.0]]])
    expected = {"rotation": 1e-5 / np.pi, "block_influence": 0.5e-10}[name]
    assert scored([(h, h, y)], registry.make("scorers", name)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", [*REFERENCES, "subfit"])
def test_zero_streams_and_short_windows_give_finite_scores(name):
    h, y = torch.zeros(2, 1, 8), torch.zeros(2, 1, 8)
    y[0] = 1
    assert np.isfinite(scored([(h, h, y)], registry.make("scorers", name)))


def test_a_window_shorter_than_the_neighbours_uses_all_of_its_tokens():
    (h, _, y), *_ = batches()
    h, y = h[:, :5], y[:, :5]
    assert scored([(h, h, y)], Neighbourhood(10)) == 0
    assert scored([(h, h, y)], Neighbourhood(2)) == pytest.approx(np.mean(exchanged(h.numpy(), y.numpy(), 2)))


def test_subfit_equals_numpy_up_to_its_bins():
    parts = list(batches(massive=40.0))
    h, y = (torch.cat([part[i] for part in parts]).double().numpy().reshape(-1, 16) for i in (0, 2))
    rotation = np.quantile(np.arccos(cosine(h, h + y)) / np.pi, 0.99)
    magnitude = norm(y, axis=1).max() / np.median(norm(h, axis=1))
    assert magnitude > 5
    assert scored(parts) == pytest.approx(rotation * magnitude, rel=0.02)


def test_subfit_sees_what_happens_to_few_tokens():
    assert scored(batches(massive=100.0)) > 10 * scored(batches())
    assert scored(batches(massive=100.0), Rotation()) < 1.1 * scored(batches(), Rotation())


def test_order_and_split_do_not_matter():
    parts = list(batches())
    assert scored(parts) == scored(reversed(parts))
    halves = [(h[:, i::2], x[:, i::2], y[:, i::2]) for h, x, y in parts for i in (0, 1)]
    assert scored(parts) == scored(halves)


# Whole models, against a naive run.


@torch.no_grad()
def passed(model, sites, tokens):
    """h and y of each site for every token, (tokens, d), in float64."""
    with ExitStack() as stack:
        seen = {site: stack.enter_context(watch(model, site)) for site in sites}
        model(tokens)
    return {site: [t.double().flatten(0, 1).numpy() for t in (part.h, part.y)] for site, part in seen.items()}


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_canonical_correlation_equals_qr_and_svd(ridge):
    model, tokens = tiny_model(), tiny_tokens(7)
    found = CanonicalCorrelation(ridge).score(Calibration(model, tokens))
    for site, (h, y) in passed(model, found, tokens).items():
        noise = np.sqrt(ridge * h.var(0).sum() * len(h) / h.shape[1]) * np.eye(h.shape[1])
        rows = [np.vstack([part - part.mean(0), noise]) for part in (h, h + y)]
        rho = np.linalg.svd(np.linalg.qr(rows[0])[0].T @ np.linalg.qr(rows[1])[0], compute_uv=False)
        assert found[site] == pytest.approx((1 - rho**2).sum(), rel=1e-4)


def test_canonical_correlation_bounds_the_error_of_the_best_affine_map():
    model, tokens = tiny_model(), tiny_tokens(7)
    found = CanonicalCorrelation(0.0).score(Calibration(model, tokens))
    for site, (h, y) in passed(model, found, tokens).items():
        before, after = h - h.mean(0), (h + y) - (h + y).mean(0)
        error = after - before @ np.linalg.lstsq(before, after, rcond=None)[0]
        assert (error**2).sum() / (after**2).sum() <= found[site] * (1 + 1e-6)


def test_explained_variance_equals_least_squares():
    model, tokens = tiny_model(), tiny_tokens(7)
    found = ExplainedVariance(Linear(ridge=0.0, reads="stream")).score(Calibration(model, tokens))
    for site, (h, y) in passed(model, found, tokens).items():
        before, target = h - h.mean(0), y - y.mean(0)
        error = target - before @ np.linalg.lstsq(before, target, rcond=None)[0]
        assert found[site] == pytest.approx((error**2).sum() / (target**2).sum(), rel=1e-4)


@pytest.mark.parametrize("base", [Linear, SharedLowRank])
def test_explained_variance_holds_the_map_of_one_site_at_a_time(base):
    made, alive = [], []

    class Counted(base):
        def fit(self, branch, moments, shared):
            alive.append(sum(reference() is not None for reference in made))
            module = super().fit(branch, moments, shared)
            made.append(weakref.ref(module))
            return module

    ExplainedVariance(Counted()).score(Calibration(tiny_model(), tiny_tokens(2)))
    assert alive == [0] * 8


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_weight_activation_equals_numpy(family):
    model, tokens = tiny_model(family), tiny_tokens(7)
    calibration = Calibration(model, tokens, batch_size=5)
    found = WeightActivation().score(calibration)
    inputs = {}
    for layer in model.modules():
        layer.register_forward_hook(lambda module, args, out: inputs.update({module: args[0] if args else None}))
    model(tokens)
    for site in calibration.sites:
        weighed = []
        for layer in model.get_submodule(site.path).modules():
            if getattr(layer, "weight", None) is not None and layer.weight.ndim == 2:
                x, weight = inputs[layer].double().flatten(0, 1).numpy(), layer.weight.numpy()
                weight = weight.T if family == "gpt2" else weight
                weighed += [abs(w) * norm(x, axis=0) / np.sqrt(len(x)) for w in weight]
        expected = np.quantile(np.concatenate(weighed), 0.5, method="lower")
        assert found[site] == pytest.approx(expected, rel=1e-5)


def test_weight_activation_needs_linear_layers():
    with pytest.raises(SubFitError, match="ffn.0 has matrices outside linear layers"):
        WeightActivation().score(Calibration(tiny_model("mixtral"), tiny_tokens(2)))


def test_kl_equals_a_naive_full_run():
    model, tokens = tiny_model(), tiny_tokens(9)
    calibration = Calibration(model, tokens, batch_size=4)
    found = KL(LowRank(share=0.2, ridge=0.1), windows=3, length=16).score(calibration)
    some, bypass = tokens[[0, 4, 8], :16], LowRank(share=0.2, ridge=0.1)
    with torch.no_grad():
        dense = model(some).logits[:, :-1].double().log_softmax(-1)
        for replacement in fit_one_shot(calibration, dict.fromkeys(calibration.sites, bypass)):
            replacement.on()
            other = model(some).logits[:, :-1].double().log_softmax(-1)
            replacement.off()
            expected = (dense.exp() * (dense - other)).sum(-1).mean()
            assert found[replacement.site] == pytest.approx(float(expected), rel=1e-3, abs=1e-7)


@torch.no_grad()
def test_loss_equals_a_naive_full_run():
    model, tokens = tiny_model(), tiny_tokens(9)
    found = Loss(windows=3, length=16).score(Calibration(model, tokens, batch_size=4))
    some = tokens[[0, 4, 8], :16]
    for site, score in found.items():
        last = model.get_submodule(site.path + (".o_proj" if site.kind == "attention" else ".down_proj")).weight
        kept = last.clone()
        last.zero_()
        assert score == pytest.approx(float(model(some, labels=some).loss), rel=1e-5)
        last.copy_(kept)


@torch.no_grad()
def test_taylor_equals_finite_differences():
    model, tokens = tiny_model().double(), tiny_tokens(9)
    found = Taylor(windows=3, length=10).score(Calibration(model, tokens))
    some, eye, eps = tokens[[0, 4, 8], :10].repeat_interleave(10, 0), torch.eye(10).repeat(3, 1)[:, :, None], 3e-3

    def losses(site, factors):  # of one copy of each window per token; what the site adds at that token is scaled
        core = model.get_submodule(site.path)
        scaled = core.register_forward_hook(
            lambda m, args, out: (out[0] * factors, *out[1:]) if isinstance(out, tuple) else out * factors
        )
        logits = model(some).logits[:, :-1].transpose(1, 2)
        scaled.remove()
        return torch.nn.functional.cross_entropy(logits, some[:, 1:], reduction="none").sum(1)

    for site, score in found.items():
        change = losses(site, 1 + eps * eye) - losses(site, 1 - eps * eye)
        assert score == pytest.approx(float(change.abs().mean() / (2 * eps)), rel=1e-3)


# Scores from elsewhere, and wrong arguments.


@pytest.fixture
def write_scores(tmp_path, monkeypatch):
    """Writes a record with the scores of each type; returns the scorer that reads it."""
    monkeypatch.chdir(tmp_path)

    def write(name, attention, ffn):
        scores = dict(zip(NAMES, chain(*zip(attention, ffn, strict=True)), strict=True))
        (tmp_path / f"{name}.json").write_text(json.dumps({"scores": scores, "selected": []}))
        return File(f"{name}.json")

    return write


@pytest.mark.parametrize(
    ("weights", "ffn"),
    [(None, [1 / 2, 1 / 4, 5 / 12, 5 / 6]), ([3.0, 1.0], [3 / 4, 5 / 24, 7 / 24, 3 / 4])],
)
def test_rank_fusion_is_the_mean_of_ranks(write_scores, weights, ffn):
    one = write_scores("one", [5, 5, 5, 5], [30, 10, 10, 20])  # ranks 1, 1/6, 1/6, 2/3
    other = write_scores("other", [1, 2, 3, 4], [-4, 0.1, 7, 1e9])  # ranks 0, 1/3, 2/3, 1
    found = RankFusion([one, other], weights).score(Calibration(tiny_model(), tiny_tokens(1)))
    a, b = weights or (1.0, 1.0)
    attention = [(a / 2 + b * rank) / (a + b) for rank in (0, 1 / 3, 2 / 3, 1)]
    assert [score for site, score in found.items() if site.kind == "attention"] == pytest.approx(attention)
    assert [score for site, score in found.items() if site.kind == "ffn"] == pytest.approx(ffn)


def test_rank_fusion_does_not_depend_on_the_order_of_the_scorers(write_scores):
    rng = np.random.default_rng(0)
    given = [write_scores(f"scores_{i}", *rng.integers(0, 3, size=(2, 4)).tolist()) for i in range(5)]
    weights, calibration = [0.1, 0.2, 0.3, 0.7, 1.1], Calibration(tiny_model(), tiny_tokens(1))
    orders = [rng.permutation(5) for _ in range(20)]
    found = [RankFusion([given[i] for i in order], [weights[i] for i in order]).score(calibration) for order in orders]
    assert all(scores == found[0] for scores in found)


def test_sites_whose_ranks_have_one_mean_are_equal(write_scores):
    given = [write_scores(f"turn_{i}", *[np.roll(range(4), i).tolist()] * 2) for i in range(4)]
    assert set(RankFusion(given).score(Calibration(tiny_model(), tiny_tokens(1))).values()) == {0.5}


def test_what_a_fused_scorer_does_wrong_is_said():
    class Unfinished(Scorer):
        def score(self, calibration):
            return dict.fromkeys(calibration.sites, float("nan"))

    with pytest.raises(SubFitError, match=f"the scorer gives nan for attention.0.*{__file__}"):
        RankFusion([Rotation(), Unfinished()]).score(Calibration(tiny_model(), tiny_tokens(1)))


def test_file_reads_a_mapping_or_a_record(write_scores, tmp_path):
    sites = Calibration(tiny_model(), tiny_tokens(1))
    (tmp_path / "scores.json").write_text(json.dumps({name: i * i for i, name in enumerate(NAMES)}))
    assert {site.name: score for site, score in File("scores.json").score(sites).items()}["ffn.3"] == 49
    one = write_scores("one", [0, 1, 2, 3], [4, 5, 6, 7])
    assert list(registry.make("scorers", one).score(sites).values()) == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "file of scores bad.json does not exist"),
        ("{", "bad.json is not JSON"),
        ("[1, 2]", "must hold a mapping of site names to numbers"),
        ('{"ffn.0": 1}', "has no score for attention.0, attention.1"),
        (json.dumps(dict.fromkeys(NAMES, 1.0) | {"ffn.1": float("nan")}), "gives nan for ffn.1; it must be a finite"),
        (json.dumps(dict.fromkeys(NAMES, 1.0) | {"ffn.1": "high"}), "gives 'high' for ffn.1; it must be a finite"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "bad.json").write_text(text)
    with pytest.raises(SubFitError, match=message) as caught:
        File("bad.json").score(Calibration(tiny_model(), tiny_tokens(1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neighbourhood(0), "neighbours is 0; it must be at least 1"),
        (lambda: CanonicalCorrelation(-1.0), "ridge is -1.0; it must not be negative"),
        (lambda: SubFit(1.5), "quantile is 1.5; it must be above 0 and at most 1"),
        (lambda: RankFusion([]), "scorers is empty"),
        (lambda: RankFusion([Rotation()], [1.0, 2.0]), "give each of the 1 scorers one"),
        (lambda: RankFusion([Rotation()], [0.0]), "give each of the 1 scorers one"),
        (lambda: registry.make("scorers", FUSION | {"init_args": {"scorers": ["rotations"]}}), "did you mean 'rotation'"),
    ],
)
def test_bad_arguments_are_one_line(make, message):
    with pytest.raises(SubFitError, match=message):
        make()


def test_bad_arguments_that_show_on_a_model_are_one_line():
    calibration = Calibration(tiny_model(), tiny_tokens(2))
    with pytest.raises(SubFitError, match="Identity is not a fitted linear map"):
        ExplainedVariance(Identity()).score(calibration)


@pytest.mark.parametrize("make", [lambda: Taylor(windows=0), lambda: Taylor(length=1), lambda: KL(windows=-1)])
def test_windows_without_a_token_to_predict_are_refused_when_a_scorer_is_made(make):
    with pytest.raises(SubFitError, match="they must be at least 1 and 2"):
        make()
