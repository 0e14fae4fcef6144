import random
from math import exp, log
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from words import sentence, word_tokenizer

from subfit.calibration.settings import Data
from subfit.errors import SubFitError
from subfit.evaluation.divergence import logits_of
from subfit.evaluation.perplexity import byte_counts, measure, read_windows


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(sentence(random.Random(3), 200))
    return str(path)


def naive_nll(model, line, length, stride, count):
    """Each token of a line once, from the first window that predicts it, in float64."""
    seen, losses = set(), []
    for start in range(0, stride * count, stride):
        with torch.no_grad():
            logits = model(line[None, start : start + length]).logits[0].double().log_softmax(-1)
        for place in range(1, length):
            if start + place not in seen:
                seen.add(start + place)
                losses.append(-float(logits[place - 1, line[start + place]]))
    return losses


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 11), st.integers(1, 4), st.integers(1, 3))
def test_strided_perplexity_equals_a_naive_loop(stride, count, batch):
    model, line = tiny_model(), tiny_tokens(1, 12 + 3 * stride)[0]
    tokens = line[: 12 + (count - 1) * stride].unfold(0, 12, stride)
    first = torch.full((count,), max(1, 12 - stride))
    first[0] = 1
    found = measure(logits_of(model), tokens, first, word_tokenizer(), batch_size=batch)
    losses = naive_nll(model, line, 12, stride, count)
    assert found["tokens"] == len(losses) == 11 + (count - 1) * min(stride, 11)
    assert found["perplexity"] == pytest.approx(exp(sum(losses) / len(losses)), rel=1e-4)


def test_windows_of_a_text_with_a_stride(tokenizer, text):
    ids = torch.tensor(tokenizer(Path(text).read_text())["input_ids"])
    tokens, first = read_windows(Data(path=text, windows=3, length=10), 4, None, tokenizer, 0)
    assert torch.equal(tokens, torch.stack([ids[:10], ids[4:14], ids[8:18]])) and first.tolist() == [1, 6, 6]
    apart = read_windows(Data(path=text, windows=3, length=10), None, None, tokenizer, 0)
    for found, expected in zip(apart, (ids[:30].view(3, 10), torch.ones(3)), strict=True):
        assert found.equal(expected.to(found.dtype))
    assert read_windows(Data(path=text, windows=3, length=10), 9, None, tokenizer, 0)[1].tolist() == [1, 1, 1]


def test_a_stride_that_does_not_suit(tokenizer, text):
    for stride in (0, 11):
        with pytest.raises(SubFitError, match=f"the stride is {stride}; it must be at least 1 and at most .*, 10"):
            read_windows(Data(path=text, windows=3, length=10), stride, None, tokenizer, 0)
    with pytest.raises(SubFitError, match="a stride needs one text"):
        read_windows(Data(windows=3, length=10), 5, None, tokenizer, 0)


def test_bits_per_byte_by_hand(tokenizer):
    """A uniform prediction costs log2(vocabulary) bits for each token."""
    text = "the café: 1 cat"
    ids = tokenizer(text)["input_ids"]
    tokens = torch.tensor([ids] * 10)
    uniform = torch.zeros(1, len(ids), len(tokenizer))
    found = measure(lambda batch: uniform.expand(len(batch), -1, -1), tokens, torch.ones(10, dtype=torch.long), tokenizer)
    size = len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    assert found["bits_per_byte"] == pytest.approx((len(ids) - 1) * log(len(tokenizer)) / log(2) / size)
    assert [found["perplexity"], *found["perplexity_interval"]] == pytest.approx([len(tokenizer)] * 3)


def test_bytes_of_the_tokens_that_count(tokenizer):
    ids = tokenizer("the café: 1 cat")["input_ids"]
    pieces = [tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
    tokens, starts = torch.tensor([ids, ids]), torch.tensor([pieces.index("the café:"), len(ids) - 1])
    counts = byte_counts(tokens, starts, tokenizer.decode).tolist()
    assert counts == [len(" 1 cat"), len("the café: 1 cat") - len(pieces[-2])]


def test_the_ratio_is_resampled_in_pairs(tokenizer):
    """Of two models whose losses differ by a constant, the ratio is certain, however the perplexity varies."""
    model, tokens = tiny_model(), tiny_tokens(12)
    logits = logits_of(model)
    first = torch.ones(12, dtype=torch.long)
    found = measure(logits, tokens, first, tokenizer, logits, seed=1)
    low, high = found["perplexity_interval"]
    assert low < found["perplexity"] < high and found["perplexity_ratio_interval"] == [1, 1]
    assert found == measure(logits, tokens, first, tokenizer, logits, seed=1, batch_size=2) | {"kl": found["kl"]}
    few = measure(logits, tokens[:9], first[:9], tokenizer, logits)
    assert few["perplexity_interval"] is None and few["perplexity_ratio_interval"] is None
