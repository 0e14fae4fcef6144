"""Kept output projections, refitted so that they make up for what was replaced before them."""

import copy

import numpy as np
import pytest
import torch
from conftest import Given, recipe, tiny_model, tiny_tokens

import subfit
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.evaluation.comparison import Comparison
from subfit.model.replacing import switched_off
from subfit.pipeline import compress_model, fit_recipe

RIDGE = 0.01


def made(**given):
    return recipe(
        **{"selector": Given(["ffn.1"]), "ffn_bypass": "mean", "fitting": "sequential", "refit_kept": RIDGE, **given}
    )


@pytest.mark.parametrize("family", ["llama", "phi"])  # phi has biases
def test_it_is_ridge_regression_towards_the_own_weights(family):
    """Of the first kept submodule behind the replaced one, by least squares on stored pairs and rows for the penalty."""
    model, tokens = tiny_model(family), tiny_tokens(40)
    compressed = compress_model(
        copy.deepcopy(model), tokens, made(selector=Given(["attention.1", "ffn.1"]), attention_bypass="mean")
    ).model
    seen = {}
    name = {"llama": "o_proj", "phi": "dense"}[family]
    projection = getattr(compressed.model.layers[2].self_attn, name)
    own = getattr(model.model.layers[2].self_attn, name)
    projection.register_forward_hook(lambda m, args, output: seen.update(z=args[0]))
    own.register_forward_hook(lambda m, args, output: seen.update(y=output))
    for role, where in (("dense", model), ("moved", compressed)):
        where.model.layers[2].register_forward_pre_hook(lambda m, args, role=role: seen.update({role: args[0]}))
    with torch.no_grad():
        model(tokens), compressed(tokens)
    z, y, dense, moved = (seen[key].flatten(0, 1).double().numpy() for key in ("z", "y", "dense", "moved"))
    weight, bias = (None if p is None else p.detach().double().numpy() for p in (own.weight, own.bias))
    lacks = y + dense - moved - z @ weight.T - (0 if bias is None else bias)
    middle = z.mean(0) if bias is not None else np.zeros(z.shape[1])
    rows = np.sqrt(len(z) * RIDGE * ((z - middle) ** 2).mean()) * np.eye(z.shape[1])
    centre = lacks.mean(0) if bias is not None else 0
    change = np.linalg.lstsq(
        np.r_[z - middle, rows], np.r_[lacks - centre, np.zeros((len(rows), lacks.shape[1]))], rcond=None
    )[0]
    refitted = projection.weight.detach().double().numpy()
    assert np.linalg.norm(change) > 1e-3 * np.linalg.norm(weight)
    assert np.linalg.norm(refitted - weight - change.T) < 1e-5 * np.linalg.norm(change)
    if bias is not None:
        offset = projection.bias.detach().double().numpy() - bias
        assert np.linalg.norm(offset - centre + middle @ change) < 1e-5 * np.linalg.norm(offset)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("gemma3_text", {}), ("olmo2", {}), ("granite", {"residual_multiplier": 0.3})],
    ids=["llama", "gemma3_text", "olmo2", "granite"],
)
def test_it_brings_the_model_back_without_a_parameter_more(family, changes):
    """Also through output norms, and where the layer scales what is added."""
    measured = {}
    for ridge in (None, RIDGE):
        model, tokens = tiny_model(family, **changes), tiny_tokens(60)
        calibration = Calibration(model, tokens)
        comparison = Comparison(model, tokens)
        switches, _ = fit_recipe(calibration, made(refit_kept=ridge))
        measured[ridge] = comparison.measure(switches)["kl"], sum(p.numel() for p in model.parameters())
    assert measured[RIDGE][0] < 0.8 * measured[None][0]
    assert measured[RIDGE][1] == measured[None][1]


def test_what_is_before_the_first_replaced_one_stays_and_all_of_it_can_be_switched_off():
    model, tokens = tiny_model(), tiny_tokens()
    before = {name: p.clone() for name, p in model.named_parameters()}
    switches, _ = fit_recipe(Calibration(model, tokens), made())
    changed = {name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert changed == {f"model.layers.{i}.{part}.weight" for i in (2, 3) for part in ("self_attn.o_proj", "mlp.down_proj")}
    with switched_off(switches):
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_projection_that_a_map_is_folded_into_later_is_none_to_train():
    """That of ffn.0, behind attention.0, is refitted; then the map of what is taken out of layer 1 goes into it."""
    model, fold = tiny_model(), {"class_path": "at_cut", "init_args": {"bypass": "replace_me"}}
    given = {"attention_bypass": "identity", "ffn_bypass": fold}
    switches, _ = fit_recipe(
        Calibration(model, tiny_tokens(40)), made(selector=Given(["attention.0", "attention.1", "ffn.1"]), **given)
    )
    trained = {id(p) for switch in switches for module in switch.trainable() for p in module.parameters()}
    names = {f"model.layers.{i}.{part}.weight" for i in (2, 3) for part in ("self_attn.o_proj", "mlp.down_proj")}
    assert {name for name, p in model.named_parameters() if id(p) in trained} == names and len(trained) == 4
    assert any("layers.0.mlp" in path for switch in switches for path in switch._new)


def test_from_a_checkpoint_it_is_the_same(model_folder, text_file, tmp_path):
    data = {"path": str(text_file), "windows": 8, "length": 32}
    options = {
        "ffn_bypass": "mean",
        "fitting": "sequential",
        "refit_kept": RIDGE,
        "sparsity": 0.5,
        "output": tmp_path / "out",
    }
    result = subfit.compress(model_folder, calibration=data, evaluation={"windows": 0}, **options)
    loaded, _ = subfit.load(str(tmp_path / "out"))
    tokens = tiny_tokens(2)
    assert torch.equal(loaded(tokens).logits, result.model(tokens).logits)
    assert result.record["configuration"]["refit_kept"] == RIDGE


def test_what_cannot_be_is_refused():
    with pytest.raises(SubFitError, match="refit_kept needs fitting: sequential"):
        made(fitting="one_shot")
    with pytest.raises(SubFitError, match="ridge is -1"):
        made(refit_kept=-1.0)


def test_where_nothing_ends_in_a_linear_layer_a_line_says_so(caplog):
    compress_model(tiny_model("gpt2"), tiny_tokens(), made())
    assert "no submodule of this model ends in a linear layer; nothing is refitted" in caplog.text
