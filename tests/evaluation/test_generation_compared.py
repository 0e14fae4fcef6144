"""What both models write, against a naive loop without a cache."""

import pytest
import torch
from compressed import SELECTIONS, compressed
from conftest import tiny_model, tiny_tokenizer

from subfit.errors import SubFitError
from subfit.evaluation.generation import compare_generations

PROMPTS = ["The capital of France is", "1", "x = [1, 2"]


def naive(model, tokenizer, prompt: str, count: int) -> list[int]:
    """Every token from the whole text before it; up to the end-of-text token."""
    ids = tokenizer.encode(prompt)
    start = len(ids)
    while len(ids) < start + count and ids[-1] != tokenizer.eos_token_id:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("names", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_both_continuations_equal_a_loop_without_a_cache(family, names):
    model, dense, tokenizer = compressed(family, names), tiny_model(family), tiny_tokenizer()
    for entry, prompt in zip(compare_generations(model, dense, tokenizer, PROMPTS, 15), PROMPTS, strict=True):
        own, other = naive(model, tokenizer, prompt, 15), naive(dense, tokenizer, prompt, 15)
        assert entry == {
            "prompt": prompt,
            "text": tokenizer.decode(own, skip_special_tokens=True),
            "tokens": len(own),
            "reference_text": tokenizer.decode(other, skip_special_tokens=True),
            "reference_tokens": len(other),
            "equal_tokens": next(
                (i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other))
            ),
        }


def test_a_model_beside_itself_and_alone():
    model, tokenizer = tiny_model("mistral"), tiny_tokenizer()
    (beside,) = compare_generations(model, model, tokenizer, ["abc"], 9)
    (alone,) = compare_generations(model, None, tokenizer, ["abc"], 9)
    assert beside["equal_tokens"] == beside["tokens"] == alone["tokens"] and beside["text"] == beside["reference_text"]
    assert set(alone) == {"prompt", "text", "tokens"} and alone["text"] == beside["text"]


def test_a_model_stops_after_its_end_of_text_token():
    model, tokenizer = tiny_model("mistral"), tiny_tokenizer()
    first, second = naive(model, tokenizer, "abc", 2)
    assert first != second
    model.generation_config.eos_token_id = [second, 99]
    (found,) = compare_generations(model, None, tokenizer, ["abc"], 9)
    assert found["tokens"] == 2 and found["text"] == tokenizer.decode([first, second], skip_special_tokens=True)


def test_the_checkpoints_settings_for_generation_do_not_count():
    model, tokenizer = tiny_model("mistral"), tiny_tokenizer()
    plain = compare_generations(model, None, tokenizer, PROMPTS, 9)
    model.generation_config.update(repetition_penalty=9.0, do_sample=True, no_repeat_ngram_size=1)
    assert compare_generations(model, None, tokenizer, PROMPTS, 9) == plain


def test_what_cannot_be_written():
    model, tokenizer = tiny_model("mistral"), tiny_tokenizer()
    for prompts, count, message in (
        (["a"], 0, "new_tokens is 0; it must be at least 1"),
        (["a", ""], 3, "the prompt '' has no token; give it a text"),
        (["a" * 250], 7, "has 250 tokens; with 7 new ones, it must fit into the model's context of 256"),
    ):
        with pytest.raises(SubFitError, match=message):
            compare_generations(model, None, tokenizer, prompts, count)
    assert len(compare_generations(model, None, tokenizer, ["a" * 250], 6)) == 1
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(SubFitError, match="the model gives NaN logits"):
        compare_generations(model, None, tokenizer, ["a"], 3)
