"""Every preset in `experiments/` is a whole recipe, and says what it follows."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_model, tiny_tokens

from subfit.cli.main import main
from subfit.config import resolve
from subfit.pipeline import compress_model

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PRESETS = [*EXPERIMENTS.glob("*.yaml"), *(EXPERIMENTS / "baselines").glob("*.yaml")]


@pytest.mark.parametrize("path", sorted(PRESETS), ids=lambda path: path.stem)
def test_every_preset_compresses_a_model_as_far_as_it_says(path):
    text = path.read_text()
    options = resolve(str(path)).recipe
    assert options.sparsity == 0.25
    if path.parent.name == "baselines":
        assert text.startswith("# ") and "arXiv " in text and "# Departs: " in text or "llm_drop" in path.name
    model = tiny_model(num_hidden_layers=8)
    training = tiny_tokens(24, seed=2) if options.training_windows else None
    result = compress_model(model, tiny_tokens(24, 24), options, evaluation=tiny_tokens(4, seed=1), training=training)
    record = result.record
    if options.budget == "submodules":
        assert len(record["selected"]) == 4
    if path.stem in ("subfit", "greedy"):
        assert 0 < record["size"]["added_parameters"] <= 0.1 * record["size"]["removed_parameters"]
    if path.stem in ("shortgpt", "uidl", "replaceme", "replaceme_cosine", "llm_drop", "sleb", "blockpruner", "evopress"):
        assert record["size"]["added_parameters"] == 0
    assert record["evaluation"]["perplexity"] > 0
    with torch.no_grad():
        assert result.model(tiny_tokens(2)).logits.isfinite().all()


def test_heal_is_best_with_more_windows_and_training_and_baselines_are_compared_on_the_same_samples():
    best, heal = (yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text()) for name in ("best", "heal"))
    assert heal.pop("finetune") and heal["calibration"].pop("windows") == 2 * resolve("best").calibration.windows
    assert heal == best
    compared = yaml.safe_load((EXPERIMENTS / "benchmarks" / "retention.yaml").read_text())["options"]["calibration"]
    assert compared == {"path": "valid.txt", **best["calibration"]}


def test_there_is_one_for_every_related_method():
    names = {path.stem for path in (EXPERIMENTS / "baselines").glob("*.yaml")}
    deletion = {"shortgpt", "uidl", "llm_drop", "sleb", "blockpruner", "evopress"}
    assert deletion | {"replaceme", "replaceme_cosine", "llm_streamline", "linearpatch", "nbl", "puzzle"} <= names


@pytest.mark.parametrize("path", sorted(PRESETS), ids=lambda path: path.stem)
def test_the_command_line_reads_every_preset_and_prints_what_it_reads_again(path, tmp_path, capsys):
    assert main(["compress", "--config", str(path), "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "strategies." not in printed  # short names all over
    (tmp_path / "printed.yaml").write_text(printed)
    assert main(["compress", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    given, read = yaml.safe_load(path.read_text()), yaml.safe_load(printed)
    assert read["sparsity"] == given["sparsity"] and read["scorer"]["class_path"] in path.read_text()


def test_a_strategy_within_a_strategy_on_the_command_line(capsys):
    nested = "{class_path: linear, init_args: {ridge: 0.5}}"
    assert main(["compress", "--scorer", "kl", "--scorer.bypass", nested, "--print_config"]) == 0
    read = yaml.safe_load(capsys.readouterr().out)
    assert read["scorer"]["init_args"]["bypass"]["init_args"] == {"ridge": 0.5, "reads": "input", "prior": "zero"}
