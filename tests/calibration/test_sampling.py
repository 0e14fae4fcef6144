"""Tokens that a model samples: by its distribution, by the seed, and the same with a cache as without."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from subfit.calibration import sampling
from subfit.calibration.sampling import draw, sample
from subfit.errors import SubFitError


def test_samples_are_seeded_and_start_at_the_begin_of_text():
    first, again, other = (sample(tiny_model(), tiny_tokenizer(), 3, 12, seed) for seed in (0, 0, 1))
    assert first.shape == (3, 12) and (first[:, 0] == 1).all()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.requires_grad is False and not first.is_inference()


def test_samples_follow_the_models_distribution():
    model = tiny_model()
    tokens = sample(model, tiny_tokenizer(), 20_000, 2, 0)
    with torch.no_grad():
        expected = model(torch.tensor([[1]])).logits[0, 0].softmax(-1)
    counts = torch.bincount(tokens[:, 1], minlength=len(expected)) / len(tokens)
    assert ((counts - expected).abs() < 5 * (expected / len(tokens)).sqrt()).all()  # five standard errors


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_a_cache_equals_sampling_without_one(family):
    """Past the sliding window of the families that have one."""
    model, windows, length = tiny_model(family), 3, 20
    numbers = torch.rand(windows, length - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.full((windows, 1), 1)
    for position in range(length - 1):
        with torch.no_grad():
            logits = model(expected, use_cache=False).logits[:, -1]
        expected = torch.cat([expected, draw(logits, numbers[:, position])[:, None]], 1)
    assert torch.equal(sample(model, tiny_tokenizer(), windows, length, 0), expected)


def test_a_window_does_not_depend_on_the_others_nor_on_the_batches(monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    whole = sample(model, tokenizer, 7, 16, 0)
    assert torch.equal(sample(model, tokenizer, 4, 16, 0), whole[:4])
    monkeypatch.setattr(sampling, "LARGEST_BATCH", 3)
    assert torch.equal(sample(model, tokenizer, 7, 16, 0), whole)


def test_windows_begin_with_the_prompts_in_turn():
    """A prompt that is longer than the window is cut; the tokens after it are those that the model gives from there."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = ["the fox", "a", "over the lazy dog"]
    tokens = sample(model, tokenizer, 5, 12, 0, prompts)
    numbers = torch.rand(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for window, row, prompt in zip(tokens, numbers, [*prompts, *prompts], strict=False):
        expected = tokenizer(prompt)["input_ids"][:12]
        while len(expected) < 12:
            with torch.no_grad():
                logits = model(torch.tensor([expected]), use_cache=False).logits[:, -1]
            expected.append(int(draw(logits, row[len(expected) - 1][None])))
        assert window.tolist() == expected


@pytest.mark.parametrize("ends", [False, True])
def test_a_window_begins_with_the_special_tokens_that_the_tokenizer_puts_in_front(ends):
    tokenizer = tiny_tokenizer()
    behind = " </s>" if ends else ""
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A" + behind, special_tokens=special)
    tokens = sample(tiny_model(), tokenizer, 1, 12, 0, ["fox"])
    alone = tiny_tokenizer()("fox", add_special_tokens=False)["input_ids"]
    assert tokens[0, : len(alone) + 1].tolist() == [special[0][1], *alone]


def test_without_a_begin_of_text_a_prompt_is_enough():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    assert sample(tiny_model(), tokenizer, 2, 4, 0, ["the", "fox"]).shape == (2, 4)


def test_tokens_are_drawn_where_the_cumulative_probability_exceeds_the_number():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 9)).astype(np.float32)
    logits[:, 4] = -np.inf
    numbers = rng.uniform(size=50)
    probabilities = np.exp(logits.astype(np.float64))
    cumulative = (probabilities / probabilities.sum(1, keepdims=True)).cumsum(1)
    expected = [np.flatnonzero(row > number)[0] for row, number in zip(cumulative, numbers, strict=True)]
    assert draw(torch.from_numpy(logits), torch.from_numpy(numbers)).tolist() == expected
    largest = torch.full((1,), 1.0, dtype=torch.float64).nextafter(torch.zeros(1, dtype=torch.float64))
    assert draw(torch.randn(1, 1000), largest).item() <= 999


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_model_that_gives_nan_or_infinity_is_refused(wrong):
    model = tiny_model()
    model.model.norm.weight.data[0] = wrong
    with pytest.raises(SubFitError, match="NaN or infinite logits; it cannot be sampled from"):
        sample(model, tiny_tokenizer(), 2, 4, 0)


def test_a_tokenizer_without_a_begin_of_text_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(SubFitError, match="no begin-of-text token"):
        sample(tiny_model(), tokenizer, 2, 4, 0)
