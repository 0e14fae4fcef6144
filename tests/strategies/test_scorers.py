"""Every scorer keeps to the interface, and orders what every importance must order."""

import json
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, names_of, tiny_model, tiny_tokens

from subfit import registry
from subfit.calibration.capture import Calibration
from subfit.scorer import StreamScorer, score_sites, score_together

WINDOWS = 7
NAMES = names_of(0, 1, 2, 3)  # of the sites of a tiny Llama


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
        one, other = (states_of(scorer, model, half) for half in (tokens[:5], tokens[5:]))
        for site, metric in one.items():
            metric.merge_state(other[site])
            assert float(metric.compute()) == pytest.approx(scores[site.name], rel=1e-4)


def states_of(scorer: StreamScorer, model, tokens) -> dict:
    """A copy of the scorer for each site, which has seen the tokens."""
    calibration = Calibration(model, tokens)
    copies = {site: scorer.clone() for site in calibration.sites}
    calibration.watch_sites(copies, "score", lambda site, seen: copies[site].update(seen.h, seen.x, seen.y))
    return copies


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


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "phi"])
def test_other_architectures_in_bfloat16(family):
    model = tiny_model(family).bfloat16()
    for name in ("block_influence", "canonical_correlation", "neighbourhood", "taylor", "weight_activation"):
        scores = scores_of(name, model, tiny_tokens(3))
        assert len(scores) == 8
        assert all(np.isfinite(score) and score > 0 for score in scores.values())


def test_scorers_that_share_a_pass_score_as_each_alone(monkeypatch):
    passes = []
    watch = Calibration.watch_sites
    monkeypatch.setattr(Calibration, "watch_sites", lambda self, *rest: passes.append(rest[1]) or watch(self, *rest))
    calibration = Calibration(tiny_model(), tiny_tokens(4))
    scorers = [registry.make("scorers", name) for name in ("rotation", "random", "subfit", "rotation", "neighbourhood")]
    together = score_together(calibration, scorers)
    assert passes == ["scoring"]
    assert together == [score_sites(calibration, scorer) for scorer in scorers]
