"""Run by torchrun: compresses a tiny model by several recipes, in as many processes as there are; each writes its result."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from conftest import recipe, tiny_model, tiny_tokens

from subfit.pipeline import compress_model

SMALL = {"windows": 3, "length": 12}
RECIPES = {
    "the paper's": {},
    "sequential": {
        "scorer": {"class_path": "kl", "init_args": SMALL},
        "selector": {"class_path": "greedy", "init_args": {"rounds": 2, **SMALL}},
        "fitting": "sequential",
        "correction": 0.5,
    },
    "pairs": {"scorer": "weight_activation", "ffn_bypass": {"class_path": "mlp", "init_args": {"steps": 5}}},
    "moments of its own": {"scorer": "canonical_correlation", "attention_bypass": "linear", "ffn_bypass": "linear"},
    "neighbours": {"scorer": "neighbourhood", "attention_bypass": "mean", "ffn_bypass": "low_rank_diagonal"},
}


def main(folder: str) -> None:
    found = {}
    for name, given in RECIPES.items():
        torch.manual_seed(0)
        result = compress_model(tiny_model().double(), tiny_tokens(21, 24), recipe(sparsity=0.5, **given), batch_size=4)
        found[name] = {"record": {**result.record, "seconds": None}, "weights": dict(result.model.state_dict())}
    torch.save(found, Path(folder) / os.environ.get("RANK", "alone"))


if __name__ == "__main__":
    main(sys.argv[1])
