"""Models of random weights have the wanted shape, and share what is kept."""

import torch

from subfit.benchmarking.random_weights import random_models
from subfit.registry import make


def test_random_models_share_what_is_kept_and_differ_where_asked(model_folder):
    bypasses = make("bypasses", "low_rank"), make("bypasses", "shared_low_rank")
    dense, compressed = random_models(str(model_folder / "config.json"), 0.5, *bypasses, dtype="bfloat16")
    assert dense.dtype == compressed.dtype == torch.bfloat16
    paths = [site["path"] for site in compressed.config.subfit["sites"]]
    assert sorted(paths) == sorted(f"model.layers.{i}.{name}" for i in (1, 3) for name in ("self_attn", "mlp"))
    assert not hasattr(dense.config, "subfit")
    assert dense.model.layers[0].mlp.up_proj.weight is compressed.model.layers[0].mlp.up_proj.weight
    added = sum(p.numel() for p in compressed.parameters()) - sum(p.numel() for p in dense.parameters())
    layer = dense.model.layers[0]
    removed = 2 * sum(p.numel() for branch in (layer.self_attn, layer.mlp) for p in branch.parameters())
    assert added < -0.8 * removed
