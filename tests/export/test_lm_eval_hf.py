"""lm-evaluation-harness reads a checkpoint by its own `hf` model."""

import pytest
from compressed import compressed, loglikelihoods
from conftest import tiny_tokenizer


def test_its_hf_model_gives_the_loglikelihoods_of_the_compressed_model(tmp_path):
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    model_of = pytest.importorskip("lm_eval.models.huggingface").HFLM
    model, tokenizer = compressed("llama", ["attention.0", "ffn.1", "ffn.2"]), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened = model_of(pretrained=str(tmp_path), trust_remote_code=True, device="cpu", dtype="float32", batch_size=2)
    pairs = [("2 times 3 is", " 6"), ("The capital", " of France")]
    asked = [instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = [value for value, _ in opened.loglikelihood(asked, disable_tqdm=True)]
    assert found == pytest.approx(loglikelihoods(model, tokenizer, pairs), rel=1e-4)
