import pytest
import torch
from conftest import tiny_model, tiny_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from subfit.errors import SubFitError
from subfit.quality import evaluate_logits, kv_bytes_per_token, logits_of


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
    found = evaluate_logits(logits_of(model), tokens, logits_of(other), batch)
    with torch.no_grad():
        expected = naive(model(tokens).logits, other(tokens).logits, tokens)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert found["tokens"] == windows * (length - 1)
    assert found["perplexity_ratio"] == pytest.approx(found["perplexity"] / found["reference_perplexity"])


def test_a_model_agrees_with_itself():
    model, tokens = tiny_model(), tiny_tokens(2)
    found = evaluate_logits(logits_of(model), tokens, logits_of(model))
    assert (found["agreement"], found["perplexity_ratio"]) == (1, 1) and abs(found["kl"]) < 1e-7


def test_extreme_logits_stay_finite_and_nan_is_an_error():
    tokens = torch.zeros(1, 3, dtype=torch.long)
    steep = torch.zeros(1, 3, 5).index_fill(2, torch.tensor([1]), 200.0)
    assert evaluate_logits(lambda _: steep, tokens)["perplexity"] == pytest.approx(torch.tensor(200.0).double().exp().item())
    with pytest.raises(SubFitError, match="NaN logits"):
        evaluate_logits(lambda _: steep * float("nan"), tokens)


def test_bytes_of_the_cache():
    assert kv_bytes_per_token(tiny_model()) == [2 * 2 * 8 * 4] * 4  # keys and values, 2 heads of 8, float32
