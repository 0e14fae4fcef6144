import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokens

from strategies.bypasses.low_rank import LowRank
from strategies.scorers.kl import KL
from strategies.scorers.subfit import SubFit
from subfit.calibration import Calibration
from subfit.fit import fit_one_shot


def batches(seed=0, count=4, massive=0.0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        h, y = (torch.randn(3, 100, 16, generator=generator) for _ in range(2))
        y = 0.3 * y
        y[:, 0, 2] += massive  # the first token of a window
        yield h, h, y


def scored(parts) -> float:
    scorer = SubFit()
    for part in parts:
        scorer.update(*part)
    return float(scorer.compute())


def test_subfit_equals_numpy_up_to_its_bins():
    parts = list(batches(massive=40.0))
    h, y = (torch.cat([part[i] for part in parts]).double().numpy().reshape(-1, 16) for i in (0, 2))
    norm = np.linalg.norm
    cosine = (h * (h + y)).sum(1) / norm(h, axis=1) / norm(h + y, axis=1)
    rotation = np.quantile(np.arccos(cosine) / np.pi, 0.99)
    magnitude = norm(y, axis=1).max() / np.median(norm(h, axis=1))
    assert magnitude > 5
    assert scored(parts) == pytest.approx(rotation * magnitude, rel=0.02)


def test_subfit_sees_what_happens_to_few_tokens():
    assert scored(batches(massive=100.0)) > 10 * scored(batches())


def test_order_and_split_do_not_matter():
    parts = list(batches())
    assert scored(parts) == scored(reversed(parts))
    halves = [(h[:, i::2], x[:, i::2], y[:, i::2]) for h, x, y in parts for i in (0, 1)]
    assert scored(parts) == scored(halves)


def test_a_site_that_adds_nothing_scores_lowest_and_one_that_rewrites_the_stream_highest():
    h = torch.randn(2, 50, 16)
    zero, small, rewritten = torch.zeros_like(h), 0.1 * torch.randn_like(h), -2 * h + 0.1 * torch.randn_like(h)
    low, middle, high = (scored([(h, h, y)]) for y in (zero, small, rewritten))
    assert 0 <= low < 1e-3 < middle < high


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


def test_kl_leaves_the_model_as_it_was():
    model, tokens = tiny_model(), tiny_tokens(9)
    with torch.no_grad():
        before = model(tokens).logits
        KL().score(Calibration(model, tokens))
        assert torch.equal(model(tokens).logits, before)
