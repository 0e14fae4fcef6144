"""What trials measure, against runs of the whole model."""

import pytest
import torch
from conftest import tiny_model, tiny_tokens

from subfit import registry
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting import trials as module
from subfit.fitting.budget import Budget
from subfit.fitting.trials import Trials, fitted_everywhere
from subfit.strategies.bypasses.low_rank import LowRank

TRIAL = {"windows": 4, "length": 15}
USERS = {  # of trials
    "evolutionary": ("selectors", {"generations": 1, "offspring": 1}),
    "greedy": ("selectors", {"rounds": 2}),
    "greedy_library": ("selectors", {"attention": ["low_rank"], "ffn": ["low_rank"], "fitted_on": 4}),
    "kl": ("scorers", {}),
    "library": ("selectors", {"attention": ["low_rank"], "ffn": ["low_rank"], "fitted_on": 4}),
}


def calibration():
    return Calibration(tiny_model(), tiny_tokens(), batch_size=3)


def made(name, **options):
    kind, own = USERS[name]
    return registry.make(kind, {"class_path": name, "init_args": {**own, **TRIAL, **options}})


@torch.no_grad()
def naive(model, tokens, counted, dense):
    """The divergence from the dense logits and the loss, each the mean over the counted predictions."""
    found = model(tokens).logits.double().log_softmax(-1)
    divergence = (dense.exp() * (dense - found)).sum(-1)
    loss = -found[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    return {"kl": float(divergence[:, counted].mean()), "loss": float(loss[:, counted].mean())}


@pytest.mark.parametrize("measure", ["kl", "loss"])
@pytest.mark.parametrize("length", [14, 15])
def test_copying_is_measured_on_the_second_half_of_what_repeats_itself(measure, length):
    data = calibration()
    trials = Trials(data, fitted_everywhere(data, LowRank(3)), data.subset(4, length), copying=2.5)
    text, repeated = (windows._tokens for windows in trials._windows)
    half = (length + 1) // 2
    assert torch.equal(text, trials.tokens) and repeated.shape == text.shape
    assert torch.equal(repeated[:, half:], repeated[:, : length - half])
    assert set(repeated.unique().tolist()) <= set(data.tokens.unique().tolist())
    assert len(repeated.unique(dim=0)) == 4
    with torch.no_grad():
        dense = [data.model(tokens).logits.double().log_softmax(-1) for tokens in (text, repeated)]
    chosen, group = data.sites[2], data.sites[5]
    (found,) = trials.costs([chosen], [[group]], measure)
    for site in (chosen, group):
        trials.replacements[site].on()
    on_text = naive(data.model, text, slice(0, length - 1), dense[0])
    on_repeated = naive(data.model, repeated, slice(half, length - 1), dense[1])  # which predicts half + 1, ...
    for site in (chosen, group):
        trials.replacements[site].off()
    assert found == pytest.approx(on_text[measure] + 2.5 * on_repeated[measure], rel=1e-4)


def test_without_copying_nothing_else_is_run(monkeypatch):
    monkeypatch.setattr(module, "repeated_segments", None)
    data = calibration()
    trials = Trials.of(data, LowRank(3), 4, 15)
    assert len(trials._windows) == 1 and trials is Trials.of(data, LowRank(3), 4, 15, copying=0.0)


@pytest.mark.parametrize("name", USERS)
def test_the_weight_of_copying_reaches_the_trials(name, monkeypatch):
    weights, start = [], Trials.__init__

    def see(self, *args, **kwargs):
        start(self, *args, **kwargs)
        weights.extend(windows._weight for windows in self._windows)

    monkeypatch.setattr(Trials, "__init__", see)
    data = calibration()
    strategy = made(name, copying=0.7)
    if name == "kl":
        assert strategy.score(data) != made(name).score(data)
    else:
        budget = Budget(data, dict.fromkeys(("attention", "ffn"), LowRank()), 0.5)
        strategy.select({site: float(site.layer) for site in data.sites}, budget, data)
    assert 0.7 in weights


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize("options", [{"copying": -1.0}, {"copying": 1.0, "length": 3}], ids=str)
def test_a_weight_that_means_nothing_is_refused(name, options):
    with pytest.raises(SubFitError, match="give 0 or more, and with copying at least 4 tokens"):
        made(name, **options)


def test_windows_that_are_too_short_for_copying_are_refused():
    short = Calibration(tiny_model(), tiny_tokens(length=3))
    with pytest.raises(SubFitError, match="copying is 1.0 and length 3"):
        Trials.of(short, LowRank(3), 4, 256, copying=1.0)
