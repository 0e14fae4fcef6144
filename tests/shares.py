"""Run by torchrun: compresses a tiny model by several recipes, in as many processes as there are; each writes its result."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from conftest import Given, recipe, tiny_model, tiny_tokens
from torch.distributed.tensor import DTensor

from subfit.finetuning.settings import FineTuning, LoRA
from subfit.model.processes import full_tensor, init_process_group, shard_model
from subfit.pipeline import compress_model

SMALL = {"windows": 3, "length": 12}
NEURONS = {"class_path": "kept_neurons", "init_args": {"share": 0.3}}
RECIPES = {
    "the paper's": {},
    "sequential": {
        "scorer": {"class_path": "kl", "init_args": SMALL},
        "selector": {"class_path": "greedy", "init_args": {"rounds": 2, **SMALL}},
        "fitting": "sequential",
        "correction": 0.5,
        "refit_kept": 0.01,
    },
    "pairs": {"scorer": "weight_activation", "ffn_bypass": {"class_path": "mlp", "init_args": {"steps": 5}}},
    "moments of its own": {"scorer": "canonical_correlation", "attention_bypass": "linear", "ffn_bypass": "linear"},
    "neurons": {"ffn_bypass": NEURONS, "fitting": "sequential"},
    "neighbours": {"scorer": "neighbourhood", "attention_bypass": "mean", "ffn_bypass": "low_rank_diagonal"},
}


DIVIDED = {  # with the weights of the layers divided among the processes, if there are several
    "the paper's, divided": RECIPES["the paper's"],
    "sequential, divided": RECIPES["sequential"],
    "neurons, divided": RECIPES["neurons"],
    "neurons at once, divided": {"ffn_bypass": NEURONS},
    "heads, divided": {  # without the low-rank map, whose factors may have other signs
        "attention_bypass": {"class_path": "kept_heads", "init_args": {"share": 0.0}},
        "fitting": "sequential",
    },
    "heads at once, divided": {"attention_bypass": "kept_heads"},
    "a prior, divided": {
        "attention_bypass": {"class_path": "linear", "init_args": {"ridge": 0.1, "prior": "weights"}},
        "fitting": "sequential",
    },
    "merged, divided": {
        "scorer": "weight_activation",
        "selector": "contiguous",
        "attention_bypass": "identity",
        "ffn_bypass": {"class_path": "at_cut", "init_args": {"bypass": "replace_me"}},
        "protect": ["layer.0"],
        "fitting": "sequential",
    },
    "gradients, divided": {"scorer": {"class_path": "taylor", "init_args": SMALL}},
}


def tuned(processes: int) -> FineTuning:
    strategy = "ddp" if processes > 1 else "auto"
    flags = dict(max_steps=4, val_check_interval=2, devices=processes, strategy=strategy, precision="64-true")
    return FineTuning(trainer=flags, batch_size=2, gradient_checkpointing=True, lora=LoRA(layers=4, rank=2))


def main(folder: str) -> None:
    found, processes = {}, int(os.environ.get("WORLD_SIZE", "1"))
    poor = dict.fromkeys(("attention_bypass", "ffn_bypass"), {"class_path": "linear", "init_args": {"ridge": 100.0}})
    tuning = {"fine-tuned, divided": {"finetune": tuned(processes), "selector": Given(["attention.1", "ffn.2"]), **poor}}
    for name, given in (RECIPES | DIVIDED | tuning).items():
        torch.manual_seed(0)
        model = tiny_model().double()
        if processes > 1 and "divided" in name:
            init_process_group(torch.device("cpu"))
            shard_model(model, torch.device("cpu"))
        made = recipe(sparsity=0.5, **given)
        result = compress_model(model, tiny_tokens(21, 24), made, evaluation=tiny_tokens(3, 24, seed=1), batch_size=4)
        state = result.model.state_dict()
        held = {key: value.to_local() if isinstance(value, DTensor) else value for key, value in state.items()}
        found[name] = {
            "record": {**result.record, "seconds": None},
            "weights": {key: full_tensor(value) for key, value in state.items()},
            "held": sum(value.numel() for key, value in held.items() if ".layers." in key),
        }
    torch.save(found, Path(folder) / os.environ.get("RANK", "alone"))


if __name__ == "__main__":
    main(sys.argv[1])
