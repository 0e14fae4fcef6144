import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_model, tiny_tokens

from strategies.bypasses.low_rank import LowRank
from strategies.scorers.canonical_correlation import CanonicalCorrelation
from strategies.scorers.explained_variance import ExplainedVariance
from strategies.scorers.file import File
from strategies.scorers.kl import KL
from strategies.scorers.loss import Loss
from strategies.scorers.neighbourhood import Neighbourhood
from strategies.scorers.rank_fusion import RankFusion
from strategies.scorers.rotation import Rotation
from strategies.scorers.subfit import SubFit
from strategies.scorers.taylor import Taylor
from strategies.scorers.weight_activation import WeightActivation
from subfit import registry
from subfit.calibration import Calibration
from subfit.errors import SubFitError
from subfit.fit import fit_one_shot
from subfit.scorer import StreamScorer
from subfit.sites import KINDS, watch

WINDOWS = 7
NAMES = [f"{kind}.{layer}" for layer in range(4) for kind in KINDS]  # of the sites of a tiny Llama
norm = np.linalg.norm


@dataclass
class Case:
    """A scorer's options, and the mathematical reasons for which it need not see a planted site; empty where it must."""

    options: dict = field(default_factory=dict)
    no_lowest: str = ""
    no_highest: str = ""


BLIND = "it does not look at the model"
ALL = {"windows": 48}  # so that the order of the windows does not matter
FEW = {"windows": WINDOWS}
CASES = {
    "block_influence": Case(),
    "canonical_correlation": Case(),
    "explained_variance": Case(no_highest="R^2 does not depend on the scale of what a site adds"),
    "file": Case({"path": "scores.json"}, BLIND, BLIND),
    "kl": Case(ALL),
    "loss": Case(ALL),
    "magnitude": Case(),
    "neighbourhood": Case(),
    "random": Case({}, BLIND, BLIND),
    "rank_fusion": Case({"scorers": ["rotation", {"class_path": "taylor", "init_args": FEW}], "weights": [3.0, 1.0]}),
    "rotation": Case(),
    "subfit": Case(),
    "taylor": Case(
        FEW, no_highest="the norms make the loss blind to the stream's length: dL/dy . y vanishes where h + y is y"
    ),
    "weight_activation": Case(no_lowest="weights below the median already can be zeroed without moving it"),
}


@pytest.fixture(autouse=True)
def scores_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps({name: i * i for i, name in enumerate(NAMES)}))


def scores_of(name, model, tokens, batch_size=8):
    scorer = registry.make("scorers", {"class_path": name, "init_args": CASES[name].options})
    return {site.name: score for site, score in scorer.score(Calibration(model, tokens, batch_size)).items()}


@cache
@torch.no_grad()
def planted(layer, factor):
    """A tiny model, one of whose FeedForwards' output projection is multiplied by `factor`, and tokens drawn from itself."""
    model = tiny_model()
    model.model.layers[layer].mlp.down_proj.weight *= factor
    model.model.norm.weight *= 16  # it is sure of its tokens, and no other model has a lower loss on them
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (48, 1), generator=generator)
    while tokens.shape[1] < 24:
        following = model(tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(following, 1, generator=generator)], dim=1)
    return model, tokens


def planted_ffn_scores(name, layer, factor) -> list[float]:
    scores = scores_of(name, *planted(layer, factor), batch_size=48)
    return [scores[f"ffn.{layer}"] for layer in range(4)]


@pytest.mark.parametrize("name", registry.names("scorers"))
def test_every_scorer_keeps_to_the_interface(name):
    assert name in CASES, f"the scorer {name} must be in the table of this test"
    model, tokens = tiny_model(), tiny_tokens(WINDOWS)
    frozen = next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = scores_of(name, model, tokens, batch_size=2)

    assert list(scores) == NAMES
    assert all(isinstance(score, float) and np.isfinite(score) for score in scores.values())
    assert scores_of(name, model, tokens, batch_size=2) == scores
    assert scores_of(name, model, tokens, batch_size=5) == pytest.approx(scores, rel=1e-4)
    permuted = tokens[torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(0))]
    assert scores_of(name, model, permuted, batch_size=2) == pytest.approx(scores, rel=1e-4)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    scorer = registry.make("scorers", {"class_path": name, "init_args": CASES[name].options})
    if isinstance(scorer, StreamScorer):
        one, other = (Calibration(model, half).stream_through(scorer.clone) for half in (tokens[:5], tokens[5:]))
        for site, metric in one.items():
            metric.merge_state(other[site])
            assert float(metric.compute()) == pytest.approx(scores[site.name], rel=1e-4)


def test_the_table_has_no_scorer_that_is_gone():
    assert set(CASES) <= set(registry.names("scorers"))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.no_lowest])
def test_a_site_that_adds_nothing_scores_lowest(name):
    scores = planted_ffn_scores(name, layer=2, factor=0.0)
    assert scores[2] < min(scores[:2] + scores[3:])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.no_highest])
def test_a_site_that_rewrites_the_stream_scores_highest(name):
    scores = planted_ffn_scores(name, layer=1, factor=100.0)
    assert scores[1] > max(scores[:1] + scores[2:])


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
    model, tokens = tiny_model(), tiny_tokens(WINDOWS)
    found = CanonicalCorrelation(ridge).score(Calibration(model, tokens))
    for site, (h, y) in passed(model, found, tokens).items():
        noise = np.sqrt(ridge * h.var(0).sum() * len(h) / h.shape[1]) * np.eye(h.shape[1])
        rows = [np.vstack([part - part.mean(0), noise]) for part in (h, h + y)]
        rho = np.linalg.svd(np.linalg.qr(rows[0])[0].T @ np.linalg.qr(rows[1])[0], compute_uv=False)
        assert found[site] == pytest.approx((1 - rho**2).sum(), rel=1e-4)


def test_canonical_correlation_bounds_the_error_of_the_best_affine_map():
    model, tokens = tiny_model(), tiny_tokens(WINDOWS)
    found = CanonicalCorrelation(0.0).score(Calibration(model, tokens))
    for site, (h, y) in passed(model, found, tokens).items():
        before, after = h - h.mean(0), (h + y) - (h + y).mean(0)
        error = after - before @ np.linalg.lstsq(before, after, rcond=None)[0]
        assert (error**2).sum() / (after**2).sum() <= found[site] * (1 + 1e-6)


def test_explained_variance_equals_least_squares():
    model, tokens = tiny_model(), tiny_tokens(WINDOWS)
    bypass = {"class_path": "linear", "init_args": {"ridge": 0.0, "reads": "stream"}}
    found = ExplainedVariance(bypass).score(Calibration(model, tokens))
    for site, (h, y) in passed(model, found, tokens).items():
        before, target = h - h.mean(0), y - y.mean(0)
        error = target - before @ np.linalg.lstsq(before, target, rcond=None)[0]
        assert found[site] == pytest.approx((error**2).sum() / (target**2).sum(), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_weight_activation_equals_numpy(family):
    model, tokens = tiny_model(family), tiny_tokens(WINDOWS)
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
    found = KL({"class_path": "low_rank", "init_args": {"share": 0.2, "ridge": 0.1}}, windows=3, length=16).score(
        calibration
    )
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


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "phi"])
def test_other_architectures_in_bfloat16(family):
    model = tiny_model(family).bfloat16()
    for name in ("block_influence", "canonical_correlation", "neighbourhood", "taylor", "weight_activation"):
        scores = scores_of(name, model, tiny_tokens(3))
        assert len(scores) == 8
        assert all(np.isfinite(score) and score > 0 for score in scores.values())


# Scores from elsewhere, and wrong arguments.


def write_scores(name, attention, ffn):
    path = f"{name}.json"
    with open(path, "w") as file:
        pairs = zip(NAMES, [score for pair in zip(attention, ffn, strict=True) for score in pair], strict=True)
        json.dump({"scores": dict(pairs), "selected": []}, file)
    return {"class_path": "file", "init_args": {"path": path}}


@pytest.mark.parametrize(
    ("weights", "ffn"),
    [(None, [1 / 2, 1 / 4, 5 / 12, 5 / 6]), ([3.0, 1.0], [3 / 4, 5 / 24, 7 / 24, 3 / 4])],
)
def test_rank_fusion_is_the_mean_of_ranks(weights, ffn):
    one = write_scores("one", [5, 5, 5, 5], [30, 10, 10, 20])  # ranks 1, 1/6, 1/6, 2/3
    other = write_scores("other", [1, 2, 3, 4], [-4, 0.1, 7, 1e9])  # ranks 0, 1/3, 2/3, 1
    found = RankFusion([one, other], weights).score(Calibration(tiny_model(), tiny_tokens(1)))
    a, b = weights or (1.0, 1.0)
    attention = [(a / 2 + b * rank) / (a + b) for rank in (0, 1 / 3, 2 / 3, 1)]
    assert [score for site, score in found.items() if site.kind == "attention"] == pytest.approx(attention)
    assert [score for site, score in found.items() if site.kind == "ffn"] == pytest.approx(ffn)


def test_file_reads_a_mapping_or_a_record():
    sites = Calibration(tiny_model(), tiny_tokens(1))
    assert {site.name: score for site, score in File("scores.json").score(sites).items()}["ffn.3"] == 49
    one = write_scores("one", [0, 1, 2, 3], [4, 5, 6, 7])
    assert list(registry.make("scorers", one).score(sites).values()) == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read scores from bad.json: No such file"),
        ("{", "bad.json is not JSON"),
        ("[1, 2]", "must hold a mapping of site names to numbers"),
        ('{"ffn.0": 1}', "has no score for attention.0, attention.1"),
        (json.dumps(dict.fromkeys(NAMES, 1.0) | {"ffn.1": float("nan")}), "gives nan for ffn.1; it must be a finite"),
        (json.dumps(dict.fromkeys(NAMES, 1.0) | {"ffn.1": "high"}), "gives 'high' for ffn.1; it must be a finite"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, message):
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
        (lambda: RankFusion([]), "scorers is empty"),
        (lambda: RankFusion(["rotation"], [1.0, 2.0]), "give each of the 1 scorers one"),
        (lambda: RankFusion(["rotation"], [0.0]), "give each of the 1 scorers one"),
        (lambda: RankFusion(["rotations"]), "did you mean 'rotation'"),
    ],
)
def test_bad_arguments_are_one_line(make, message):
    with pytest.raises(SubFitError, match=message):
        make()


def test_bad_arguments_that_show_on_a_model_are_one_line():
    calibration = Calibration(tiny_model(), tiny_tokens(2))
    with pytest.raises(SubFitError, match="Identity is not a fitted linear map"):
        ExplainedVariance("identity").score(calibration)
    for scorer in (Taylor(windows=0), Taylor(length=1), KL(windows=0)):
        with pytest.raises(SubFitError, match="they must be at least 1 and 2"):
            scorer.score(calibration)
