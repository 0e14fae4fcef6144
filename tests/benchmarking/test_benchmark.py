"""The command `subfit benchmark`, and the protocols that come with the project."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from subfit.cli.main import main
from subfit.model.submodules import decoder_layers

PROTOCOLS = Path(__file__).parents[2] / "experiments" / "benchmarks" / "speed"


def test_a_benchmark_from_the_outside(subfit, model_folder, text_file, tmp_path):
    given = ["--calibration.windows", 4, "--calibration.length", 32, "--evaluation.windows", 0]
    data = ["--calibration.path", text_file, "--sparsity", 0.5, "--output", "small"]
    assert (
        main(["compress", "--model", str(model_folder), *map(str, given), *map(str, data[:-1]), str(tmp_path / "small")])
        == 0
    )
    work = ["--prompt_lengths", 8, 16, "--contexts", 8, "--batch_sizes", 1, "--new_tokens", 2, "--repeats", 3]
    done = subfit("benchmark", "small", "--reference", model_folder, *work, "--output", "speed", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # nothing else on stdout
    assert result == json.loads((tmp_path / "speed" / "benchmark.json").read_text())
    assert (tmp_path / "speed" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert [entry["prompt_length"] for entry in result["prefill"]] == [8, 16] and result["setting"]["dtype"] == "float32"
    assert result["size"]["compressed"]["kv_bytes_per_token"] * 2 == result["size"]["dense"]["kv_bytes_per_token"]
    assert all(seconds > 0 for entry in result["decoding"] for seconds in entry["seconds"].values())
    assert "timing prefill of 16 tokens: " in done.stderr and "timing decoding of 1 x 8 tokens: " in done.stderr


def test_a_benchmark_of_random_weights_shows_a_table(model_folder, tmp_path, capsys):
    (tmp_path / "speed.yaml").write_text("prompt_lengths: [8]\ncontexts: []\nrepeats: 1\nattention_bypass: identity\n")
    given = ["--config", str(tmp_path / "speed.yaml"), "--warmup", "0", "--output", str(tmp_path / "speed")]
    assert main(["benchmark", "--random_weights", str(model_folder), *given]) == 0
    shown = capsys.readouterr().out
    assert "prefill 8" in shown and "cpu, " in shown and "eager" in shown and "forward passes" not in shown


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_protocols_run(protocol, model_folder, capsys):
    wanted = yaml.safe_load(protocol.read_text())
    assert (PROTOCOLS.parents[2] / wanted["random_weights"]).is_file()
    small = {"prompt_lengths": 8, "contexts": 8, "batch_sizes": 2, "calibration_windows": 2}
    small = {name: value for name, value in small.items() if wanted.get(name) != []} | {"calibration_length": 16}
    small |= {"new_tokens": 2, "repeats": 1, "device": "cpu", "random_weights": model_folder}
    given = [part for name, value in small.items() for part in (f"--{name}", str(value))]
    assert main(["benchmark", "--config", str(protocol), *given, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [len(result[part]) for part in ("prefill", "decoding")] == ["prompt_lengths" in small, "contexts" in small]
    assert result["compression"][0]["length"] == 16


@pytest.mark.parametrize("shape", sorted(PROTOCOLS.glob("shapes/*.json")), ids=lambda path: path.stem)
def test_the_shapes_of_the_protocols_are_those_of_models(shape):
    config = AutoConfig.from_pretrained(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert len(decoder_layers(model)[1]) == config.num_hidden_layers
    if shape.stem == "smollm2-135m":
        assert sum(p.numel() for p in model.parameters()) == 134_515_008


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give a compressed model and its dense reference"),
        (["a", "--reference", "b", "--random_weights", "c"], "random_weights alone"),
        (["--random_weights", "nobody/nothing"], "cannot build a model of the configuration 'nobody/nothing'"),
        (["--random_weights", "no/such/config.json"], "the folder no/such/config.json does not exist"),
        (["--random_weights", "{folder}/width.json"], "The hidden size (-8) is not a multiple of the number"),
        (["--random_weights", "{folder}/layers.json"], "LlamaForCausalLM has no list of decoder layers"),
        (["--random_weights", "c", "--sparsity", "1"], "sparsity is 1"),
        (["--random_weights", "c", "--repeats", "0"], "repeats is 0; it must be a whole number of at least 1"),
        (["--random_weights", "c", "--batch_sizes", "1", "0"], "batch_sizes is 0"),
        (["--random_weights", "c", "--prompt_lengths", "--contexts"], "there is nothing to time"),
        (["--random_weights", "c", "--calibration_windows", "0"], "calibration_windows is 0"),
        (["--random_weights", "c", "--output", "."], "the output folder . exists"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(given, message, capsys, tmp_path):
    (tmp_path / "width.json").write_text('{"model_type": "llama", "hidden_size": -8}')
    (tmp_path / "layers.json").write_text('{"model_type": "llama", "num_hidden_layers": 0, "hidden_size": 32}')
    assert main(["benchmark", *(value.format(folder=tmp_path) for value in given)]) == 2
    shown = capsys.readouterr()
    assert message in shown.err.strip().splitlines()[-1] and shown.out == ""
