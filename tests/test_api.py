import importlib
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, tiny_tokens
from safetensors.torch import load_file

import subfit
from subfit.calibration.settings import EvaluationData
from subfit.cli.main import main
from subfit.config import OPTIONS
from subfit.options import declarations
from subfit.options.annotations import hints
from subfit.strategies.bypasses.low_rank import LowRank
from subfit.strategies.bypasses.shared_low_rank import SharedLowRank
from subfit.strategies.scorers.kl import KL
from subfit.strategies.selectors.per_type import PerType


def test_compress_load_and_evaluate(model_folder, text_file, tmp_path):
    result = subfit.compress(
        model=str(model_folder),
        sparsity=0.5,
        ffn_bypass={"class_path": "low_rank", "init_args": {"rank": 4}},
        calibration={"path": str(text_file), "windows": 6, "length": 32},
        evaluation={"windows": 2, "length": 32},
        output=str(tmp_path / "out"),
    )
    model, tokenizer = subfit.load(str(tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(model(tiny_tokens(2)).logits, result.model(tiny_tokens(2)).logits)
    assert tokenizer("a")["input_ids"] == result.tokenizer("a")["input_ids"]
    assert result.record["configuration"]["ffn_bypass"]["init_args"]["rank"] == 4
    assert set(subfit.list_strategies("bypasses")) == {"bypasses"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": {"sparsty": 0.5}}, "unknown option 'sparsty'; did you mean 'sparsity'\\? options are scorer, selector"),
        (
            {"calibration": {"widows": 3}},
            "calibration: unknown option 'widows'; did you mean 'windows'\\? options are source",
        ),
        ({"scorer": "subfitt"}, "unknown scorer 'subfitt'; did you mean 'subfit'"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
    ],
)
def test_bad_options_are_one_clear_error(given, message):
    with pytest.raises(subfit.SubFitError, match=message):
        subfit.compress(**given)


def test_arguments_of_the_other_functions_are_checked_as_options_are(model_folder, text_file):
    model, text = str(model_folder), {"path": text_file, "windows": 1, "length": 16}
    assert type(subfit.load(model_folder)[0]) is type(subfit.load(model)[0])
    named = subfit.evaluate(model_folder, data={"text": text})
    assert named["texts"] == subfit.evaluate(model, data=EvaluationData(path=str(text_file), windows=1, length=16))["texts"]
    for given, message in (
        ({"data": "text.txt"}, "data is 'text.txt'; it must be a mapping or a mapping of source, path, "),
        ({"data": {"text": 5}}, "data.text is 5; it must be a mapping of source, path, "),
        ({"data": text, "seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"data": text, "batch_size": "4"}, "batch_size is '4'; it must be a whole number"),
        ({"prompts": [5]}, r"prompts\[0\] is 5; it must be a string"),
        ({"tasks": "a.jsonl"}, "tasks is 'a.jsonl'; it must be a list"),
    ):
        with pytest.raises(subfit.SubFitError, match=message):
            subfit.evaluate(model, **given)
    with pytest.raises(subfit.SubFitError, match="name is 5; it must be a string"):
        subfit.load(5)
    with pytest.raises(subfit.SubFitError, match="workload: unknown option 'repeat'; did you mean 'repeats'"):
        subfit.benchmark(model, reference=model, workload={"repeat": 1})
    with pytest.raises(subfit.SubFitError, match="config is 5; it must be a preset's name"):
        subfit.compress(model, config=5)


def test_compress_has_a_signature_that_names_every_option():
    parameters = inspect.signature(subfit.compress).parameters
    assert [name for name in parameters if name not in ("model", "tokenizer", "config", "allow_code")] == [
        o for o in OPTIONS if o != "model"
    ]
    assert hints(subfit.compress).keys() - {"return"} == parameters.keys()
    for name in parameters:
        assert re.search(rf"^ {{4,8}}{name}: ", subfit.compress.__doc__, re.MULTILINE), name
    with pytest.raises(TypeError, match="sparsty"):
        subfit.compress(sparsty=0.5)


def test_what_an_editor_sees_of_subfit_is_what_there_is():
    source = declarations.read(Path(subfit.__file__))
    for name in subfit.__all__:
        module, original = source.imports[name]
        assert getattr(importlib.import_module(module), original) is getattr(subfit, name)


SMALL = {"windows": 2, "length": 16}
SIZES = {"calibration": {"windows": 6, "length": 32}, "evaluation": {"windows": 0}, "seed": 3}
TRIED = {"scorer.windows": 2, "scorer.length": 16}
RUNS = {
    "subfit": ["subfit"],
    "best": ["best", {"selector.windows": 2, "selector.length": 16}],
    "greedy": ["greedy", {**TRIED, "selector.windows": 2, "selector.length": 16}],
    "sleb": ["sleb", {**TRIED, "selector.windows": 2, "selector.length": 16}],
    "replaceme": ["replaceme"],
    "linearpatch": ["linearpatch"],
    "random": [{"scorer": "random", "selector": "random", "ffn_bypass": "mean"}],
    "objects": [{"scorer": KL(LowRank(2), **SMALL), "selector": PerType(), "ffn_bypass": LowRank(rank=3, ridge=0.5)}],
    "by_rule": [
        {
            "ffn_bypass": {
                "class_path": "by_rule",
                "init_args": {"rules": {"0-1": {"class_path": "low_rank", "init_args": {"rank": 2}}}, "default": "linear"},
            },
            "attention_bypass": {"class_path": "at_cut", "init_args": {"bypass": {"class_path": "low_rank_diagonal"}}},
        }
    ],
    "one object for both": [dict.fromkeys(("attention_bypass", "ffn_bypass"), SharedLowRank(rank=2))],
}


@pytest.mark.parametrize("case", RUNS)
def test_a_record_and_what_is_printed_make_the_same_weights_again(case, model_folder, text_file, tmp_path, capsys):
    sizes = {**SIZES, "calibration": {**SIZES["calibration"], "path": str(text_file)}, "model": str(model_folder)}
    first = subfit.compress(config=[*RUNS[case], sizes], sparsity=0.5, output=tmp_path / "one")
    written = first.record["configuration"]
    assert written == json.loads((tmp_path / "one" / "compression.json").read_text())["configuration"]
    weights = first.model.state_dict()

    again = subfit.compress(**{**written, "output": None})
    assert again.record["configuration"] == {**written, "output": None}
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in weights.items())

    record = ["--config", str(tmp_path / "one" / "compression.json"), "--output", str(tmp_path / "two")]
    assert main(["compress", *record, "--print_config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert main(["compress", "--config", str(tmp_path / "printed.yaml"), "--json"]) == 0
    third = json.loads(capsys.readouterr().out)
    assert third["configuration"] == {**written, "output": str(tmp_path / "two")}
    saved = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert saved[0].keys() == saved[1].keys() and all(saved[0][name].equal(saved[1][name]) for name in saved[0])
    for key in ("scores", "selected", "explained_variance", "format_version"):
        assert third[key] == first.record[key]


def test_a_loaded_model_is_compressed_as_one_that_is_named(model_folder, text_file):
    given = {"sparsity": 0.5, **SIZES, "calibration": {**SIZES["calibration"], "path": str(text_file)}}
    named = subfit.compress(model_folder, **given)
    model, tokenizer = subfit.load(str(model_folder), dtype="float32", device="cpu")
    loaded = subfit.compress(model, tokenizer=tokenizer, **given)
    assert loaded.tokenizer is tokenizer
    written = loaded.record["configuration"]
    assert written == {**named.record["configuration"], "dtype": "float32", "device": "cpu"}
    again = subfit.compress(**written)
    for other in (loaded, again):
        assert other.record["scores"] == named.record["scores"]
        found = other.model.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in named.model.state_dict().items())


def test_a_loaded_model_without_a_name_and_what_does_not_fit_one():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for given, message in (
        ({}, "give its tokenizer, too"),
        ({"tokenizer": tokenizer, "dtype": "bfloat16"}, "dtype is bfloat16, but the loaded model is float32"),
        ({"tokenizer": tokenizer, "device": "cuda"}, "device is cuda, but the loaded model is on cpu"),
        ({"tokenizer": tokenizer, "fsdp": True}, "give the model's name"),
    ):
        with pytest.raises(subfit.SubFitError, match=message):
            subfit.compress(model, **given)
    with pytest.raises(subfit.SubFitError, match="the model is a Linear; it must be a name, or a model of transformers"):
        subfit.compress(torch.nn.Linear(2, 2), tokenizer=tokenizer)
    with pytest.raises(subfit.SubFitError, match="a tokenizer is given for a loaded model only"):
        subfit.compress("smollm2-135m", tokenizer=tokenizer)
    written = subfit.compress(model, tokenizer=tokenizer, **SIZES).record["configuration"]
    assert written["model"] is None
    with pytest.raises(subfit.SubFitError, match="a loaded model without a name; give the model"):
        subfit.compress(config=written)
