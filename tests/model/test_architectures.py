"""Model types of transformers, one for each mechanism that they differ in, through a whole compression."""

import tempfile

import pytest
import torch
from architectures import tiny_model_of
from compressed import generate
from conftest import Given, recipe, tiny_model, tiny_tokenizer, tiny_tokens

import subfit
from subfit.errors import SubFitError
from subfit.model.activations import watch
from subfit.model.checkpoint import save
from subfit.model.discovery import find_sites
from subfit.model.modeling_subfit import Zero
from subfit.model.recording import probe_tokens
from subfit.model.replacing import BypassReplacement
from subfit.pipeline import compress_model


def compressed(family, names, **given):
    made = recipe(selector=Given(names), attention_bypass="linear", ffn_bypass="linear", **given)
    return compress_model(tiny_model_of(family), tiny_tokens(6, 12), made, batch_size=4)


@torch.no_grad()
def check_sum(model, sites):
    """Nothing in the place of a site is what zero in the place of its output is."""
    tokens = probe_tokens(model, 6)
    site = sites[-1]
    with watch(model, site) as seen:
        model(tokens, use_cache=False)
    assert seen.h.shape == seen.y.shape and seen.y.isfinite().all()
    core = model.get_submodule(site.output_norm or site.path)

    def nothing(module, args, output):
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    handle = core.register_forward_hook(nothing)
    expected = model(tokens, use_cache=False).logits
    handle.remove()
    replacement = BypassReplacement(model, site, Zero(), "nothing")
    replacement.on()
    torch.testing.assert_close(model(tokens, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    replacement.off()


def check_generation(model):
    """Decoding with a cache, past sliding windows and with padding on the left, gives what it gives without."""
    ids = tiny_tokens(2, 7, seed=1)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with_cache, without = (generate(model, ids, mask, use_cache=used) for used in (True, False))
    for a, b in zip(with_cache.logits, without.logits, strict=True):
        torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-3)  # mixers see padding in ways of their own
    assert torch.equal(with_cache.sequences[1], without.sequences[1])


def check(family):
    """Compresses the first and the last layer, each type of site, and all sites; saves; loads again."""
    sites = find_sites(tiny_model_of(family))
    check_sum(tiny_model_of(family), sites)
    ends = [site.name for site in sites if site.layer in (sites[0].layer, sites[-1].layer)]
    for kind in {site.kind for site in sites}:
        selected = [site.name for site in sites if site.kind == kind]
        check_generation(compressed(family, selected, fitting="sequential").model)
    record = compressed(family, [site.name for site in sites]).record
    assert record["size"]["after"]["kv_bytes_per_token"] == record["size"]["after"]["state_bytes_per_sequence"] == 0
    part = compressed(family, ends)
    check_generation(part.model)
    with tempfile.TemporaryDirectory() as folder:
        save(part.model, None, part.record, f"{folder}/model", lambda *_: None)  # and loads it again
    in_bfloat16 = find_sites(tiny_model_of(family).to(torch.bfloat16))
    assert [site.name for site in in_bfloat16] == [site.name for site in sites]


@pytest.mark.parametrize("family", ["falcon", "granite", "granitemoehybrid", "qwen3_5_text", "nemotron_h", "opt"])
def test_some_families(family):
    """Sums in place, coefficients, two FeedForwards and two kinds of cache in a model, one branch a layer."""
    check(family)


def test_values_that_flow_from_layer_to_layer_beside_the_stream_are_refused():
    """The values of the first Attention are added to those of all others, as in ResFormer (arXiv 2410.17897)."""
    model, flows = tiny_model(), {}
    projections = [layer.self_attn.v_proj for layer in model.model.layers]
    projections[0].register_forward_hook(lambda module, args, output: flows.update(values=output))
    for projection in projections[1:]:
        projection.register_forward_hook(lambda module, args, output: output + flows["values"])
    with pytest.raises(SubFitError, match="values flow beside the stream") as caught:
        subfit.compress(
            model, tokenizer=tiny_tokenizer(), calibration={"windows": 4, "length": 24}, evaluation={"windows": 2}
        )
    said = "LlamaForCausalLM cannot be compressed: run layer by layer, it computes something else than as a whole (error "
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
