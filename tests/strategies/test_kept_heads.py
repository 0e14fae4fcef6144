"""Kept heads against the dense Attention and least squares on what it reads and makes; their cache; what is refused."""

import numpy as np
import pytest
import torch
from architectures import tiny_model_of
from compressed import generate
from conftest import FAMILIES, Given, recipe, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.export.static_cache import ModelWithStaticCache
from subfit.finetuning.settings import FineTuning
from subfit.fitting.budget import Budget
from subfit.fitting.costs import count_flops
from subfit.fitting.one_shot import fit_one_shot
from subfit.fitting.substitutes import RetrainedLayer
from subfit.model.discovery import find_sites
from subfit.model.modeling_subfit import KeptGroups
from subfit.model.sizes import kv_bytes_per_token
from subfit.pipeline import compress_model
from subfit.strategies.bypasses.at_cut import AtCut
from subfit.strategies.bypasses.decoder_layer import DecoderLayer
from subfit.strategies.bypasses.kept_heads import KeptHeads

SLIDING = {"sliding_window": 8}
HEADS = {  # families with key-value heads of their own, and how many; the others are refused
    "llama": {},
    "mistral": SLIDING,
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {},  # with output norms, and sliding windows in every second layer
    "phi": {},  # in parallel with the FeedForward
    "gpt_neox": {"num_key_value_heads": 4},  # queries, keys and values of a head are rows of one projection
    "mixtral": {},
}
OTHERS = ["gpt_oss", "qwen3_next", "opt", "granite"]  # sinks; gates in the query projection; counts of heads; a coefficient


def model_of(family: str):
    return tiny_model_of(family) if family in OTHERS else tiny_model(family, **HEADS[family])


def attentions(model):
    return [site for site in find_sites(model) if site.kind == "attention" and site.groups]


def replaced(model, *names: str, fitting: str = "one_shot", **options):
    """A model with kept heads in the places of some Attentions, by default the first and the last."""
    names = names or tuple(site.name for site in attentions(model)[:: len(attentions(model)) - 1])
    made = recipe(selector=Given(list(names)), attention_bypass=KeptHeads(**options), fitting=fitting)
    return compress_model(model, tiny_tokens(), made, batch_size=4).model


def passing(model, site, tokens):
    """What the Attention of a dense model reads, its heads, and what it adds; (windows, tokens, ...) in float64."""
    seen = {}
    output = model.get_submodule(site.output_norm or site.path)
    hooks = [
        model.get_submodule(site.path).register_forward_pre_hook(
            lambda m, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
        model.get_submodule(site.output_projection).register_forward_pre_hook(lambda m, args: seen.update(z=args[0])),
        output.register_forward_hook(lambda m, args, y: seen.update(y=y[0] if isinstance(y, tuple) else y)),
    ]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return (seen[name].double().numpy() for name in "xzy")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"ridge": 0.1}),
        ("llama", {"ridge": 0.1, "prior": "weights"}),
        ("llama", {"ridge": 0.0, "share": 0.0}),
        *((family, {"ridge": 0.05}) for family in HEADS if family not in ("llama", "mixtral")),
    ],
)
def test_the_maps_are_ridge_regression_on_the_input_and_the_heads_with_the_most_unexplained_energy(family, options):
    """Against least squares on the tokens; the map of x, if any, has full rank. On other tokens, with the module itself."""
    model, options = model_of(family), {"share": 1.2, **options}
    site, tokens, others = attentions(model)[-1], tiny_tokens(16), tiny_tokens(3, seed=5)
    x, z, y = (part.reshape(-1, part.shape[-1]) for part in passing(model, site, tokens))
    xc, zc, yc = (part - part.mean(0) for part in (x, z, y))
    own = model.get_submodule(site.output_projection).weight.detach().double().numpy().T

    xx, xz = xc.T @ xc / len(x), xc.T @ zc / len(x)
    inverse = np.linalg.inv(xx + options["ridge"] * (xc**2).mean() * np.eye(len(xx)))
    energy = ((zc**2).mean(0) - (xz * (inverse @ xz)).sum(0)) * (own**2).sum(1)
    group = np.argmax(energy.reshape(site.groups, -1).sum(1))
    columns = np.arange(site.hidden).reshape(site.groups, -1)[group]

    prior = own[columns] if options.get("prior") == "weights" else np.zeros_like(own[columns])
    inputs = [xc, zc[:, columns]] if options["share"] else [zc[:, columns]]
    penalties = np.concatenate([np.full(part.shape[1], options["ridge"] * (part**2).mean()) for part in inputs])
    best = ridged_lstsq(np.concatenate(inputs, 1), yc - zc[:, columns] @ prior, penalties)
    best[-len(columns) :] += prior

    new_x, new_z, _ = passing(model, site, others)
    features = [new_x - x.mean(0), (new_z - z.mean(0))[..., columns]][-len(inputs) :]
    expected = y.mean(0) + np.concatenate(features, -1) @ best
    (replacement,) = fit_one_shot(Calibration(model, tokens), {site: KeptHeads(**options)})
    replacement.on()
    gave = []
    model.get_submodule(site.path).register_forward_hook(lambda m, args, y: gave.append(y[0] if isinstance(y, tuple) else y))
    with torch.no_grad():
        model(others, use_cache=False)
    np.testing.assert_allclose(gave[0].numpy(), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def ridged_lstsq(inputs, y, penalties):
    rows = np.r_[inputs, np.diag(np.sqrt(len(inputs) * penalties))]
    return np.linalg.lstsq(rows, np.r_[y, np.zeros((len(penalties), y.shape[1]))], rcond=None)[0]


@pytest.mark.parametrize("family", [name for name in (*HEADS, *OTHERS) if name != "gemma3_text"])
@torch.no_grad()
def test_where_the_other_heads_give_nothing_nothing_is_lost(family):
    """Of a dense model with zeros in the other heads' output weights; an output norm would not be linear."""
    model, tokens = model_of(family), tiny_tokens(40)
    kept = {}
    for site in attentions(model):
        weight = model.get_submodule(site.output_projection).weight
        kept[site.name] = site.layer % site.groups
        weight.unflatten(1, (site.groups, -1))[:, [g for g in range(site.groups) if g != kept[site.name]]] = 0
    before = model(tokens, use_cache=False).logits
    result = replaced(model, *kept, share=0.0, ridge=0.0)
    assert sum(isinstance(module, KeptGroups) for module in result.modules()) == len(kept) > 0
    torch.testing.assert_close(result(tokens, use_cache=False).logits, before, rtol=1e-3, atol=1e-3 * before.abs().max())


@pytest.mark.parametrize("family", [*HEADS, *OTHERS])
def test_decoding_with_any_cache_equals_decoding_without_and_a_saved_model_does_the_same(family, tmp_path):
    """Beyond sliding windows, with padding on the left."""
    model = replaced(model_of(family), fitting="sequential")
    ids = tiny_tokens(3, 7, seed=1)
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, :1] = 0, 0
    expected = generate(model, ids, mask, use_cache=False)
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    caches = {
        "made by generate": {},
        "made by the user": {"past_key_values": DynamicCache()},
        "static": {"cache_implementation": "static", "disable_compile": True},
        "static, allocated before": {"cache_implementation": "static", "prefill_chunk_size": 4, "disable_compile": True},
    }
    if family == "qwen3_next":  # whose linear attention is not made for the others
        caches = {"made by generate": {}}
    for name, options in caches.items():
        found = generate(model, ids, mask, use_cache=True, **options)
        assert torch.equal(found.sequences, expected.sequences), name
        for a, b in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(saved(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_decoding_is_one_graph_for_the_compiler():
    model, ids = replaced(tiny_model()), tiny_tokens(2, 9)
    torch.compiler.reset()
    forward = torch.compile(model.forward, backend="eager", fullgraph=True)  # raises where the graph would break
    cache = StaticCache(config=model.config, max_cache_len=9)
    with torch.no_grad():
        found = [model(ids[:, :5], past_key_values=cache).logits]
        found += [forward(token, past_key_values=cache).logits for token in ids[:, 5:].split(1, 1)]
        torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_cache_holds_the_kept_groups_alone_whatever_cache_it_is():
    model = replaced(tiny_model("mistral", num_key_value_heads=4, **SLIDING), "attention.0", "attention.2", groups=3)
    ids = tiny_tokens(2, 12)
    assert [2 * 4 * 8 * n for n in (3, 4, 3, 4)] == kv_bytes_per_token(model)  # keys and values of 8 numbers of 4 bytes
    early = StaticCache(config=model.config, max_cache_len=16)
    early.early_initialization(2, model.config.num_key_value_heads, 8, torch.float32, ids.device)
    caches = [None, DynamicCache(), DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=16), early]
    for cache in caches:
        with torch.no_grad():
            held = model(ids, use_cache=True, past_key_values=cache).past_key_values
        assert [slot.keys.shape[1] for slot in held.layers] == [3, 4, 3, 4]
        assert [slot.values.shape[1] for slot in held.layers] == [3, 4, 3, 4]
    assert any(isinstance(slot, DynamicSlidingWindowLayer) for slot in caches[2].layers)


def test_a_cache_that_another_model_has_filled_is_refused():
    dense, ids = tiny_model(), tiny_tokens(1, 5)
    with torch.no_grad():
        filled = dense(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="slot 0 of the cache was filled by another model"):
            replaced(tiny_model())(ids, past_key_values=filled)


def test_an_exported_model_has_buffers_for_the_kept_groups_alone():
    model, ids = replaced(tiny_model()), tiny_tokens(2, 16)
    module = ModelWithStaticCache(model, batch_size=2, length=16)
    held = [buffer.shape[1] for name, buffer in module.named_buffers() if name.startswith("keys_")]
    assert held == [1, 2, 2, 1]
    with torch.no_grad():
        program = torch.export.export(module, (ids[:, :1], torch.tensor([3])), strict=False).module()
        found = [program(token, torch.tensor([i])) for i, token in enumerate(ids.split(1, 1))]
        torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "phi", "gpt_neox"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_sizes_and_costs_are_those_of_the_compressed_model(family, share):
    model, tokens, bypass = tiny_model(family), tiny_tokens(8), KeptHeads(share=share)
    sites = attentions(model)
    budget = Budget(Calibration(model, tokens), {"attention": bypass}, 0.5, "kv_bytes")
    saved = {unit: sum(budget.savings(unit)[site] for site in sites) for unit in ("kv_bytes", "parameters", "flops")}
    made = recipe(selector=Given([site.name for site in sites]), attention_bypass=bypass)
    result = compress_model(model, tokens, made)
    before, after = result.record["size"]["before"], result.record["size"]["after"]
    assert result.record["size"]["added_parameters"] == bypass.parameters(sites)
    assert saved["kv_bytes"] == before["kv_bytes_per_token"] - after["kv_bytes_per_token"] > 0
    assert saved["parameters"] == before["parameters"] - after["parameters"]
    run = count_flops(lambda: result.model(tokens[:1], use_cache=False))["Global"] / tokens.shape[1]
    assert after["flops_per_token"] == pytest.approx(run)
    assert saved["flops"] == pytest.approx(before["flops_per_token"] - after["flops_per_token"], rel=0.03)  # biases, norms


def test_a_retrained_layer_saves_nothing_of_the_cache():
    calibration = Calibration(tiny_model(), tiny_tokens(4))
    cut = AtCut(DecoderLayer())
    assert isinstance(cut.bypass, RetrainedLayer)
    savings = Budget(calibration, {"attention": cut}, 0.5, "kv_bytes").savings()
    assert [savings[site] for site in attentions(calibration.model)] == [
        128.0,
        128.0,
        128.0,
        0.0,
    ]  # the last is the cut's end


def test_other_sites_may_be_refitted():
    given = {"attention_bypass": KeptHeads(share=0.2), "selector": Given(["attention.0", "attention.2", "ffn.1"])}
    made = recipe(**given, fitting="sequential", refit_kept=0.01)
    state = compress_model(tiny_model(), tiny_tokens(), made).model.state_dict()
    dense = tiny_model().state_dict()
    for path in ("model.layers.1.self_attn.o_proj", "model.layers.3.mlp.down_proj"):
        assert not torch.equal(state[f"{path}.weight"], dense[f"{path}.weight"])
    rows = state["model.layers.0.self_attn.attention.q_proj.weight"]
    assert any(torch.equal(rows, own) for own in dense["model.layers.0.self_attn.q_proj.weight"].split(len(rows)))


def test_a_fine_tuning_trains_all_of_it(spoilt):
    tuning = FineTuning(trainer={"max_steps": 20, "val_check_interval": 5}, learning_rate=1e-3)
    made = recipe(selector=Given(["attention.1"]), attention_bypass=KeptHeads(), fitting="sequential", finetune=tuning)
    result = compress_model(tiny_model(), tiny_tokens(40, 32), made)
    record = result.record["finetune"]
    assert record["kept"] == "fine-tuned" and record["kl_after"] < record["kl_before"] and not record["stopped"]
    assert record["trained_parameters"] == result.record["size"]["added_parameters"]


@pytest.mark.parametrize("family", sorted({*FAMILIES, "phi3", "deepseek_v3", "falcon"} - {*HEADS}))
def test_an_attention_without_heads_of_its_own_is_refused(family):
    """One norm over all queries, one projection for queries, keys and values, latent keys and values, a single head."""
    model = tiny_model(family) if family in (*FAMILIES, "phi3") else tiny_model_of(family)
    site = next(site for site in find_sites(model) if site.kind == "attention")
    with pytest.raises(SubFitError, match="heads") as caught:
        replaced(model, site.name)
    assert site.name in str(caught.value) and "\n" not in str(caught.value)


def test_options_and_sites_out_of_range_are_one_clear_error():
    for options, message in (
        ({"groups": 0}, "groups is 0 and share 0.1; give at least 1"),
        ({"share": -0.1}, "share -0.1; give at least 1, and at least 0"),
        ({"ridge": -1.0}, "ridge is -1.0"),
    ):
        with pytest.raises(SubFitError, match=message):
            KeptHeads(**options)
    for options, message in (
        ({"groups": 2}, "groups is 2; it must be less than 2, the key-value heads of attention.0"),
        ({"share": 0.001}, "0.001 of attention.0 is less than rank 1"),
    ):
        with pytest.raises(SubFitError, match=message):
            replaced(tiny_model(), **options)
    made = recipe(selector=Given(["ffn.0"]), ffn_bypass=KeptHeads())
    with pytest.raises(SubFitError, match=r"ffn\.0 has no key-value heads; use it for Attentions"):
        compress_model(tiny_model(), tiny_tokens(), made)
