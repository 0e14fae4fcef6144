"""Compressed models of several selections, what they generate, and how likely they find a text."""

import torch
from conftest import Given, recipe, tiny_model, tiny_tokens

from subfit.pipeline import compress_model

FRESH = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
sys.modules["subfit"] = None  # importing it fails: as if it were not installed
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokens = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save({"logits": model(tokens).logits, "generated": model.generate(tokens[:1, :5], max_new_tokens=5)}, sys.argv[3])
"""

SELECTIONS = {
    "the first attention": ["attention.0", "ffn.1"],
    "the last attention": ["attention.3", "ffn.3"],
    "all attentions": [f"attention.{layer}" for layer in range(4)],
    "all feed-forwards": [f"ffn.{layer}" for layer in range(4)],
    "everything": [f"{kind}.{layer}" for layer in range(4) for kind in ("attention", "ffn")],
}


def compressed(family: str, names: list[str], **given):
    made = recipe(selector=Given(names), attention_bypass="linear", ffn_bypass="linear", **given)
    return compress_model(tiny_model(family), tiny_tokens(), made, batch_size=4).model


@torch.no_grad()
def loglikelihoods(model, tokenizer, pairs: list[tuple[str, str]]) -> list[float]:
    """What lm-evaluation-harness asks for: of each continuation after its context, where a character is a token."""
    found = []
    for context, continuation in pairs:
        ids = tokenizer(context + continuation, return_tensors="pt")["input_ids"]
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        found.append(float(logprobs[-len(continuation) :].sum()))
    return found


def generate(model, ids, mask, **options):
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **settings, **options)
