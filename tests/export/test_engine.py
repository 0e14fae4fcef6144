"""`subfit benchmark --engine vllm` from the outside, with a process in vLLM's place that answers as `vllm_worker` does."""

import json
import sys

import pytest

from subfit import compress
from subfit.cli.main import main

ANSWERS = """#!{python}
import json, os, sys
demand = json.loads(sys.argv[-1])
assert sys.argv[1:4] == ["-P", "-m", "subfit.export.vllm_worker"], sys.argv
compressed = "small" in demand["folder"]
assert demand["dtype"] == "float32" and demand["tokens"] == 18 and demand["sequences"] == 4 and not demand["compiled"]
assert os.environ["MALLOC_MMAP_MAX_"] == "0", "memory that is freed goes back to the system"
print("noise", file=sys.stderr)
print(json.dumps({{"version": "vllm 0", "bytes_per_token": 128 if compressed else 256, "tokens": {tokens}}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    seconds = {{"prefill": 0.01 * len(asked["prompts"]), "decode": 0.1 * asked["new_tokens"] / (2 if compressed else 1)}}
    print(json.dumps(seconds), flush=True)
"""
WORK = ["--prompt_lengths", "8", "--contexts", "16", "--batch_sizes", "2", "--new_tokens", "2", "--repeats", "3"]


@pytest.fixture(scope="module")
def small(model_folder, text_file, tmp_path_factory):
    """A compressed model."""
    output = tmp_path_factory.mktemp("compressed") / "small"
    data = {"path": str(text_file), "windows": 8, "length": 32}
    compress(model=str(model_folder), calibration=data, evaluation={"windows": 0}, sparsity=0.5, output=str(output))
    return output


def script(folder, text):
    path = folder / "python"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_both_models_are_timed_in_the_engine(subfit, model_folder, small, tmp_path):
    python = script(tmp_path, ANSWERS.format(python=sys.executable, tokens=1000))
    given = [small, "--reference", model_folder, "--engine", "vllm", "--engine_python", python, *WORK]
    done = subfit("benchmark", *given, "--output", "speed", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "speed" / "benchmark.json").read_text())
    cache = {"dense": {"bytes_per_token": 256, "tokens": 1000}, "compressed": {"bytes_per_token": 128, "tokens": 1000}}
    assert result["engine"] == {"name": "vllm", "version": "vllm 0", "cache": cache}
    (prefill,), (decoding,) = result["prefill"], result["decoding"]
    assert prefill["seconds"] == {"dense": 0.01, "compressed": 0.01} and prefill["speedup"]["measured"] == 1
    assert decoding["seconds"] == pytest.approx({"dense": 0.2, "compressed": 0.1})
    assert decoding["tokens_per_second"] == pytest.approx({"dense": 20, "compressed": 40})
    assert decoding["requests_at_once"] == {"dense": 2, "compressed": 4}  # half of the Attentions are replaced
    assert decoding["requests_per_second"] == pytest.approx({"dense": 2 / 0.22, "compressed": 4 / 0.14})
    assert decoding["speedup"]["measured"] == pytest.approx(2)
    in_transformers = subfit("benchmark", small, "--reference", model_folder, *WORK, "--json")
    same = json.loads(in_transformers.stdout)
    assert [entry["speedup"]["ideal"] for entry in (prefill, decoding)] == [
        same[part][0]["speedup"]["ideal"] for part in ("prefill", "decoding")
    ]
    shown = subfit("benchmark", *given)
    assert "tokens in the memory for it" in shown.stdout and "\nvllm 0\n" in shown.stdout
    (line,) = (line for line in shown.stdout.splitlines() if "requests at once in equal memory" in line)
    assert line.split()[-2:] == ["2", "4"]


def test_a_batch_that_the_cache_does_not_hold_is_refused(model_folder, small, tmp_path, capsys):
    python = script(tmp_path, ANSWERS.format(python=sys.executable, tokens=37))
    given = [str(small), "--reference", str(model_folder), "--engine", "vllm", "--engine_python", str(python), *WORK]
    assert main(["benchmark", *given]) == 2
    shown = capsys.readouterr()
    message = "2 sequences of 19 tokens are more than the cache of the dense model in vllm holds, 37 tokens; give smaller"
    assert message in shown.err and shown.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('#!/bin/sh\necho \'{"error": "no room"}\'\n', "vLLM cannot serve {model}: no room"),
        ("#!/bin/sh\necho it broke >&2\nexit 1\n", "vLLM cannot serve {model}: it broke"),
        ("#!/no/such/thing\n", "cannot be run"),
    ],
)
def test_an_engine_that_fails_is_one_line(text, message, model_folder, small, tmp_path, capsys):
    given = [str(small), "--reference", str(model_folder), "--engine", "vllm", *WORK]
    assert main(["benchmark", *given, "--engine_python", str(script(tmp_path, text))]) == 2
    shown = capsys.readouterr()
    assert message.format(model=model_folder) in shown.err.strip().splitlines()[-1] and shown.out == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--engine", "vllm"], "vLLM is not installed here; give --engine_python"),
        (["--engine", "vllm", "--calibration_windows", "4"], "a compression is timed in transformers only"),
        (["--engine_python", "python"], "engine_python is of another engine"),
        (["--engine", "vlm"], "vlm"),
    ],
)
def test_wrong_options_are_one_line(given, message, model_folder, small, capsys):
    assert main(["benchmark", str(small), "--reference", str(model_folder), *WORK, *given]) == 2
    shown = capsys.readouterr()
    assert message in shown.err.strip().splitlines()[-1] and shown.out == ""
