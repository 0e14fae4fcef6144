"""`torch.export` of compressed models: with a length that varies, and with a static cache."""

import pytest
import torch
from compressed import SELECTIONS, compressed
from conftest import tiny_tokens

from subfit import SubFitError
from subfit.export.static_cache import ModelWithStaticCache

LENGTH = 16


@pytest.mark.parametrize("names", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_an_exported_model_decodes_the_same_with_buffers_for_kept_attentions_alone(family, names):
    model, ids = compressed(family, names), tiny_tokens(2, LENGTH)
    module = ModelWithStaticCache(model, batch_size=2, length=LENGTH)
    kept = 4 - sum(name.startswith("attention") for name in names)
    assert len([name for name, _ in module.named_buffers() if name.startswith("keys_")]) == kept
    with torch.no_grad():
        program = torch.export.export(module, (ids[:, :1], torch.tensor([3])), strict=False).module()
        found = [program(token, torch.tensor([i])) for i, token in enumerate(ids.split(1, 1))]
        torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, rtol=1e-4, atol=1e-4)
        again = [program(token, torch.tensor([i])) for i, token in enumerate(ids[:, :5].split(1, 1))]
        torch.testing.assert_close(torch.cat(again, 1), model(ids[:, :5]).logits, rtol=1e-4, atol=1e-4)


def test_the_length_may_vary_without_a_cache():
    model = compressed("llama", SELECTIONS["the first attention"])
    dynamic = {"input_ids": {1: torch.export.Dim("length", min=2, max=64)}, "use_cache": None}
    program = torch.export.export(
        model, (), {"input_ids": tiny_tokens(1, 8), "use_cache": False}, dynamic_shapes=dynamic, strict=False
    )
    for length in (5, 23):
        ids = tiny_tokens(1, length, seed=2)
        with torch.no_grad():
            found = program.module()(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_sliding_window_that_is_too_short_is_refused():
    with pytest.raises(SubFitError, match="length is 16, but the model has a sliding window of 8 tokens"):
        ModelWithStaticCache(compressed("gemma3_text", ["attention.0"]), 1, LENGTH)
