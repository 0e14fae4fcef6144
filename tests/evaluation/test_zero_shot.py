import random

import pytest
import torch
from compressed import SELECTIONS, compressed
from conftest import FAMILIES, tiny_model, tiny_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from words import WORDS, rows, word_tokenizer

from subfit.errors import SubFitError
from subfit.evaluation.tasks import Item, Task, joined
from subfit.evaluation.zero_shot import encode, log_likelihoods, score_task


def naive(model, pairs):
    """Each pair by itself, whole, without a cache; probabilities in float64."""
    values, greedy = [], []
    for context, continuation in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation]), use_cache=False).logits[0].double().log_softmax(-1)
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        values.append(sum(float(logits[place, token]) for place, token in zip(places, continuation, strict=True)))
        greedy.append(all(int(logits[place].argmax()) == t for place, t in zip(places, continuation, strict=True)))
    return values, greedy


def some_pairs(seed: int, count: int = 12):
    """Contexts of few lengths, each with one to four continuations."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        context = tiny_tokens(1, rng.choice([1, 5, 5, 14]), rng.randrange(1000))[0].tolist()
        pairs += [
            (context, tiny_tokens(1, rng.randint(1, 5), rng.randrange(1000))[0].tolist()) for _ in range(rng.randint(1, 4))
        ]
    rng.shuffle(pairs)
    return pairs


def check(model, pairs, budget):
    values, greedy = log_likelihoods(model, pairs, budget)
    expected, expected_greedy = naive(model, pairs)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=2e-4, atol=2e-4)
    assert greedy.tolist() == expected_greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_contexts_equal_a_naive_loop(family):
    """Also with windows of 8 tokens, over which some contexts and continuations reach."""
    check(tiny_model(family), some_pairs(0), 64)


@pytest.mark.parametrize("names", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_of_compressed_models_too(family, names):
    check(compressed(family, names), some_pairs(1, 6), 64)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 100), st.integers(1, 200))
def test_batches_of_any_size_give_equal_scores(seed, budget):
    check(tiny_model(), some_pairs(seed, 5), budget)


def test_greedy_continuations_are_known():
    model, context = tiny_model(), tiny_tokens(1, 6)
    whole = model.generate(context, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)[0].tolist()
    own, wrong = whole[6:], [*whole[6:8], (whole[8] + 1) % 100]
    assert log_likelihoods(model, [(whole[:6], own), (whole[:6], wrong)], 64)[1].tolist() == [True, False]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("short", [False, True])
def test_scores_equal_those_of_lm_evaluation_harness(begins, short):
    """With white space at the end of contexts, and with items longer than the model's context."""
    tokenizer = word_tokenizer(begins)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=12 if short else 256)
    items = [Item(tuple((row["query"], choice) for choice in row["choices"]), row["gold"]) for row in rows(20)]
    texts = [(context, joined(context, continuation)) for item in items for context, continuation in item.pairs]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(texts)]
    expected = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(requests, disable_tqdm=True)
    pairs = [encode(tokenizer, *pair) for item in items for pair in item.pairs]
    assert any(len(c) + len(t) > 13 for c, t in pairs)
    values, greedy = log_likelihoods(model, pairs, 100)
    torch.testing.assert_close(values, torch.tensor([v for v, _ in expected], dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert greedy.tolist() == [g for _, g in expected]


def test_the_space_belongs_to_the_continuation():
    tokenizer = word_tokenizer()
    for context in ("the cat", "the cat "):
        start, continuation = encode(tokenizer, context, "sat")
        assert (tokenizer.decode(start), tokenizer.decode(continuation)) == ("the cat", " sat")


def test_answers_by_sum_and_by_bytes():
    tokenizer = word_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    choices = ("café", "the cat and the dog sat on some mat", "rain")
    item = Item(tuple(("the dog", choice) for choice in choices), 1)
    sums, _ = naive(model, [encode(tokenizer, *pair) for pair in item.pairs])
    per_byte = [value / size for value, size in zip(sums, (5, 35, 4), strict=True)]
    assert sums.index(max(sums)) != 1
    found = score_task(model, tokenizer, Task("toy", [item, item]), 100)
    assert (found.correct, found.correct_norm) == ([0.0] * 2, [float(per_byte.index(max(per_byte)) == 1)] * 2)
    assert found.chance == pytest.approx(1 / 3) and found.log_likelihoods == pytest.approx([sums[1]] * 2, rel=1e-4)


def test_a_single_continuation_is_right_if_it_is_greedy():
    tokenizer = word_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    items = [Item((("the dog sat", word),), None) for word in WORDS]
    found = score_task(model, tokenizer, Task("toy", items), 100)
    sums, greedy = naive(model, [encode(tokenizer, *item.pairs[0]) for item in items])
    assert found.correct == [float(g) for g in greedy] and (found.correct_norm, found.chance) == (None, 0)
    assert found.log_likelihoods == pytest.approx(sums, rel=1e-4)


def test_what_cannot_be_scored_is_said():
    model = tiny_model(max_position_embeddings=4)
    with pytest.raises(SubFitError, match="a continuation of 5 tokens is longer than the model's context, 4"):
        log_likelihoods(model, [([5], [6] * 5)], 64)
    with pytest.raises(SubFitError, match="continuation 1 or its context has no token of its own"):
        log_likelihoods(model, [([5], [6]), ([5], [])], 64)
    tokenizer = word_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(SubFitError, match="task toy: the model gives NaN logits"):
        score_task(model, tokenizer, Task("toy", [Item((("a", "a"),), None)]), 64)
