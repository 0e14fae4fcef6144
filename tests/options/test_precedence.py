"""Options win over configurations wherever they stand, and it is said where that may surprise."""

import json

import pytest
import yaml

from subfit.cli.main import main

FILES = {
    "half.yaml": "sparsity: 0.5\nfinetune: {learning_rate: 1e-3}",
    "dotted.yaml": "scorer.quantile: 0.5\ncalibration.windows: 4",
    "rotation.yaml": "scorer: rotation",
    "kl.json": json.dumps({"scorer": {"class_path": "kl", "init_args": {"windows": 2}}}),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Returns what `subfit compress ... --print_config` prints, and its lines on stderr."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def run(*arguments):
        code = main(["compress", *arguments, "--print_config"])
        shown = capsys.readouterr()
        return yaml.safe_load(shown.out) if code == 0 else None, shown.err.splitlines()

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--sparsity", "0.25", "--config", "half.yaml"],
            "--sparsity 0.25 holds, and not 0.5 of the later --config half.yaml",
        ),
        (["--sparsity=0.25", "--config=half.yaml"], "--sparsity 0.25 holds, and not 0.5 of the later"),
        (["--sparsity", "0.5", "--config", "half.yaml"], None),  # it says the same
        (["--config", "half.yaml", "--sparsity", "0.25"], None),  # it stands behind
        (["--seed", "1", "--config", "half.yaml"], None),  # it is not in there
        (["--config", "half.yaml", "--config", "best"], None),  # the later configuration wins
        (["--sparsity", "0.25", "--sparsity", "0.5"], "--sparsity is given twice: the later 0.5 holds, and not 0.25"),
        (["--sparsity", "0.5", "--sparsity", "0.5"], None),
        (
            ["--scorer", "subfit", "--config", "rotation.yaml"],
            "--scorer subfit holds, and not rotation of the later --config",
        ),
        (["--scorer", "rotation", "--config", "rotation.yaml"], None),
        (
            ["--scorer", "kl", "--config", "kl.json"],
            "--scorer kl holds, and not kl with windows of the later --config kl.json",
        ),
        (
            ["--scorer.windows", "3", "--config", "kl.json"],
            "--scorer.windows 3 holds, and not 2 of the later --config kl.json",
        ),
        (["--scorer.init_args.windows", "2", "--config", "kl.json"], None),
        (["--scorer.quantile", "0.9", "--config", "dotted.yaml"], "--scorer.quantile 0.9 holds, and not 0.5 of the later"),
        (["--calibration", "{windows: 8}", "--config", "dotted.yaml"], "--calibration.windows 8 holds, and not 4 of the"),
        (
            ["--finetune.learning_rate", "2e-3", "--config", "half.yaml"],
            "--finetune.learning_rate 2e-3 holds, and not",
        ),
        (["--finetune.learning_rate", "1e-3", "--config", "half.yaml"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_does_not_hold_although_it_is_the_last_is_reported(run, arguments, line):
    found, lines = run(*arguments)
    assert found is not None
    assert not lines if line is None else len(lines) == 1 and lines[0].startswith(f"subfit compress: {line}")


def test_only_what_holds_in_the_end_is_said_to_hold(run):
    found, lines = run("--sparsity", "0.25", "--config", "half.yaml", "--sparsity", "0.125")
    assert found["sparsity"] == 0.125
    assert lines == ["subfit compress: --sparsity is given twice: the later 0.125 holds, and not 0.25"]


def test_an_option_holds_wherever_it_stands(run):
    before, _ = run("--scorer.windows", "3", "--sparsity", "0.125", "--config", "kl.json", "--config", "half.yaml")
    after, _ = run("--config", "kl.json", "--config", "half.yaml", "--scorer.windows", "3", "--sparsity", "0.125")
    assert before == after and before["scorer"]["init_args"]["windows"] == 3 and before["sparsity"] == 0.125


def test_an_argument_that_the_scorer_of_a_later_configuration_does_not_have_is_refused(run):
    found, (line,) = run("--scorer.quantile", "0.9", "--config", "rotation.yaml")
    assert found is None and "scorer rotation: unknown option 'quantile'; options are none" in line
