from math import log

import pytest
import torch
from conftest import tiny_model, tiny_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from subfit.errors import SubFitError
from subfit.evaluation.divergence import logits_of, summary, window_sums
from subfit.model.sizes import kv_bytes_per_token


def naive(logits, reference, tokens):
    """Token by token, in float64."""
    nll = agreed = divergence = 0.0
    count = 0
    for row in range(len(tokens)):
        for position in range(tokens.shape[1] - 1):
            q, p = (t[row, position].double().softmax(-1) for t in (logits, reference))
            nll -= float(q[tokens[row, position + 1]].log())
            agreed += float(q.argmax() == p.argmax())
            divergence += float((p * (p / q).log()).sum())
            count += 1
    return {"perplexity": torch.tensor(nll / count).exp().item(), "agreement": agreed / count, "kl": divergence / count}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(1, 3))
def test_equals_a_naive_loop(windows, length, batch):
    model, other, tokens = tiny_model(), tiny_model("qwen2"), tiny_tokens(windows, length)
    found = summary(window_sums(logits_of(model), tokens, logits_of(other), batch))
    with torch.no_grad():
        expected = naive(model(tokens).logits, other(tokens).logits, tokens)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert found["tokens"] == windows * (length - 1)
    assert found["perplexity_ratio"] == pytest.approx(found["perplexity"] / found["reference_perplexity"])


@pytest.mark.parametrize("windows", [1, 5])
def test_sums_over_windows_count_from_where_they_should(windows):
    model, other, tokens = tiny_model(), tiny_model("qwen2"), tiny_tokens(windows, 9)
    first = torch.arange(1, windows + 1)
    found = window_sums(logits_of(model), tokens, logits_of(other), 2, first=first)
    alone = window_sums(logits_of(model), tokens, batch_size=3, first=first)
    assert set(alone) == {"tokens", "nll"} and alone["tokens"].tolist() == [8 - i for i in range(windows)]
    torch.testing.assert_close(alone["nll"], found["nll"])
    for row, start in enumerate(first.tolist()):
        with torch.no_grad():
            logits = [m(tokens[row : row + 1]).logits[:, start - 1 :] for m in (model, other)]
        expected = naive(*logits, tokens[row : row + 1, start - 1 :])
        assert float(found["nll"][row] / found["tokens"][row]) == pytest.approx(log(expected["perplexity"]), rel=1e-4)
        assert float(found["agreed"][row] / found["tokens"][row]) == pytest.approx(expected["agreement"])
        assert float(found["divergence"][row] / found["tokens"][row]) == pytest.approx(expected["kl"], rel=1e-4)


def test_no_window_is_an_error():
    with pytest.raises(SubFitError, match="no window"):
        window_sums(lambda _: torch.zeros(0), torch.zeros(0, 4, dtype=torch.long))


def test_a_model_agrees_with_itself():
    model, tokens = tiny_model(), tiny_tokens(2)
    found = summary(window_sums(logits_of(model), tokens, logits_of(model)))
    assert (found["agreement"], found["perplexity_ratio"]) == (1, 1) and abs(found["kl"]) < 1e-7


def test_extreme_logits_stay_finite_and_nan_is_an_error():
    tokens = torch.zeros(1, 3, dtype=torch.long)
    steep = torch.zeros(1, 3, 5).index_fill(2, torch.tensor([1]), 200.0)
    assert summary(window_sums(lambda _: steep, tokens))["perplexity"] == pytest.approx(
        torch.tensor(200.0).double().exp().item()
    )
    with pytest.raises(SubFitError, match="NaN logits"):
        window_sums(lambda _: steep * float("nan"), tokens)


def test_bytes_of_the_cache():
    assert kv_bytes_per_token(tiny_model()) == [2 * 2 * 8 * 4] * 4  # keys and values, 2 heads of 8, float32
