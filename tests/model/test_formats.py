"""Checkpoints of earlier formats open as the same model; one of a later format is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from subfit.errors import SubFitError
from subfit.evaluation.evaluate import evaluate
from subfit.model import modeling_subfit
from subfit.model.loading import load
from subfit.tracking.records import FORMAT_VERSION

FORMAT_1 = (
    Path(__file__).parent / "checkpoint_of_format_1"
)  # of a Llama, both kinds replaced, the first Attention among them


@pytest.fixture
def old(tmp_path):
    tiny_tokenizer().save_pretrained(shutil.copytree(FORMAT_1, tmp_path / "old"))
    return tmp_path / "old"


@pytest.mark.parametrize("remote_code", [False, True])
def test_a_checkpoint_of_format_1_has_equal_logits(old, remote_code):
    if remote_code:
        model = AutoModelForCausalLM.from_pretrained(old, trust_remote_code=True)
    else:
        model, _ = load(str(old))
    expected = load_file(FORMAT_1 / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["ids"]).logits, expected["logits"], rtol=1e-5, atol=1e-5)
        generated = model.generate(expected["ids"][:, :4], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(generated, expected["generated"])


def test_a_checkpoint_of_a_newer_format_is_refused_in_one_line(old):
    config = json.loads((old / "config.json").read_text())
    config["subfit"]["format_version"] = FORMAT_VERSION + 1
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(SubFitError, match=r"written by a newer subfit \(format 3; this one reads up to 2\): upgrade"):
        load(str(old))


def test_a_record_of_a_newer_format_is_refused_in_one_line(old):
    record = json.loads((old / "compression.json").read_text())
    (old / "compression.json").write_text(json.dumps(record | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(
        SubFitError, match=r"compression\.json: written by a newer subfit \(format 3; this one reads up to 2\)"
    ):
        evaluate(str(old))


def test_checkpoints_and_records_have_one_version():
    assert modeling_subfit.FORMAT_VERSION == FORMAT_VERSION  # in two places, as a checkpoint's code imports nothing of ours
