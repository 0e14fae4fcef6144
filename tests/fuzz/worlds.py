"""The files that fuzzed commands find: models, a text, a task, and the results of a compression and of an ablation."""

import contextlib
import json
from pathlib import Path

import yaml
from conftest import tiny_model, tiny_tokenizer
from words import rows as task_rows

from subfit.cli.main import main

DATA = {"calibration": {"path": "text.txt", "windows": 4, "length": 16}, "evaluation": {"windows": 2}}
OPTIONS = {
    "model": "dense",
    "scorer": {"class_path": "subfit", "init_args": {"quantile": 0.9}},
    "selector": {"class_path": "per_type", "init_args": {}},
    "attention_bypass": {"class_path": "low_rank", "init_args": {"rank": 4, "ridge": 0.01}},
    "ffn_bypass": {"class_path": "linear", "init_args": {"ridge": 0.01}},
    "sparsity": 0.5,
    "budget": "submodules",
    "protect": ["layer.0"],
    "fitting": "sequential",
    "target": "corrected",
    "correction": 0.5,
    **DATA,
    "seed": 1,
    "dtype": "float32",
    "device": "cpu",
    "batch_size": 4,
    "logger": "none",
    "output": None,
}
FINETUNE = {
    "trainer": {"max_steps": 2, "val_check_interval": 1, "gradient_clip_val": 1.0},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}},
    "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}},
    "learning_rate": 0.01,
    "warmup": 0.5,
    "batch_size": 2,
    "kl": 1.0,
    "losses": {"subfit.finetuning.losses.stream_error": 0.5},
    "patience": 3,
    "lora": {"layers": 1, "rank": 2, "alpha": 2},
}
GRID = {
    "base": ["subfit"],
    "options": {"model": "dense", "fitting": "one_shot", **DATA},
    "axes": {"sparsity": [0.5], "bypass": {"mean": {"attention_bypass": "mean", "ffn_bypass": "mean"}, "base": {}}},
    "zip": {"seed": [0, 1], "batch_size": [2, 4]},
    "cells": [{"sparsity": 0.25}],
    "exclude": [{"bypass": "base"}],
    "texts": {"more": {"path": "text.txt", "windows": 1, "length": 8}},
    "tasks": ["task.jsonl"],
    "limit": 2,
}


def make_world(folder: Path) -> Path:
    """Fills a folder and returns it."""
    folder.mkdir()
    tiny_model(num_hidden_layers=2).save_pretrained(folder / "dense")
    tiny_tokenizer().save_pretrained(folder / "dense")
    (folder / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(99)))
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task_rows(2)))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"Row {i} is row {i}."}) + "\n" for i in range(30)))
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    (folder / "options.yaml").write_text(yaml.safe_dump(OPTIONS, sort_keys=False))
    with contextlib.chdir(folder):
        assert main(["compress", "--config", "options.yaml", "--output", "compressed"]) == 0
        assert main(["ablate", "grid.yaml", "--output", "runs"]) == 0
    return folder
