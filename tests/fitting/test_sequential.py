"""Sequential fits, against least squares on stored pairs."""

import copy

import torch
from conftest import Given, recipe, tiny_model, tiny_tokens

from subfit.pipeline import compress_model


def test_the_corrected_target_brings_the_stream_back():
    """With an exact enough bypass later on, what an earlier one did wrong is mended; not so with the other targets."""
    errors = {}
    for target in ("branch", "dense", "corrected"):
        model, tokens = tiny_model(), tiny_tokens(60)
        with torch.no_grad():
            dense = model(tokens, output_hidden_states=True).hidden_states[3]
        made = recipe(
            selector=Given(["attention.0", "ffn.2"]),
            attention_bypass="identity",
            ffn_bypass="linear",
            fitting="sequential",
            target=target,
        )
        compressed = compress_model(model, tokens, made).model
        with torch.no_grad():
            moved = compressed(tokens, output_hidden_states=True).hidden_states[3]
        errors[target] = float((moved - dense).square().mean())
    assert errors["corrected"] < errors["dense"] < errors["branch"]


def test_sequential_fits_equal_least_squares_on_stored_pairs():
    """The second bypass is the float64 least squares of the corrected target on the compressed stream's norm."""
    import numpy as np

    model, tokens = tiny_model(), tiny_tokens(40)
    names = ["attention.1", "ffn.1"]
    linear = {"class_path": "linear", "init_args": {"ridge": 0.0}}
    made = recipe(selector=Given(names), attention_bypass=linear, ffn_bypass=linear, fitting="sequential")
    compressed = compress_model(copy.deepcopy(model), tokens, made).model
    dense_layer, layer = model.model.layers[1], compressed.model.layers[1]
    seen = {}
    dense_layer.register_forward_hook(lambda m, args, output: seen.update(goal=output))
    layer.post_attention_layernorm.register_forward_hook(lambda m, args, output: seen.update(h=args[0], x=output))
    with torch.no_grad():
        model(tokens), compressed(tokens)
    x, y = (t.flatten(0, 1).double().numpy() for t in (seen["x"], seen["goal"].double() - seen["h"].double()))
    expected = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    weight = layer.mlp.weight.double().T.numpy()
    assert np.linalg.norm(weight - expected[:-1]) < 1e-6 * np.linalg.norm(expected[:-1])
    assert np.linalg.norm(layer.mlp.bias.double().numpy() - expected[-1]) < 1e-6 * np.linalg.norm(expected)
