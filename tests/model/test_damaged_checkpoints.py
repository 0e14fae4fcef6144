"""A checkpoint that is not what was written is refused in one line, dense or compressed; none is filled up at random."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import subfit
from subfit.cli.main import main
from subfit.errors import SubFitError
from subfit.model.loading import load

OPTIONS = {"attention_bypass": "low_rank", "ffn_bypass": "shared_low_rank", "sparsity": 0.5, "evaluation": {"windows": 0}}
EVALUATE = ["--windows", "1", "--length", "8"]


@pytest.fixture(scope="module")
def compressed_folder(model_folder, text_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("compressed") / "compressed"
    data = {"path": str(text_file), "windows": 8, "length": 32}
    subfit.compress(str(model_folder), calibration=data, output=output, **OPTIONS)
    return output


@pytest.fixture
def compressed(compressed_folder, tmp_path):
    return shutil.copytree(compressed_folder, tmp_path / "model")


@pytest.fixture
def dense(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "dense")


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, message, **options):
    with pytest.raises(SubFitError) as caught:
        load(str(folder), **options)
    said = str(caught.value)
    assert said.startswith(f"cannot load the model '{folder}': ") and message in said and "\n" not in said, said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(num_hidden_layers=5),
            "model.layers.4.input_layernorm.weight and 8 more are not in the weight files",
        ),
        (
            lambda c: c.update(num_hidden_layers=3),
            "model.layers.3.input_layernorm.weight and 8 more are in them, but not in",
        ),
        (lambda c: c.update(model_type="gpt2"), "its weights are not those of its config.json"),
        (
            lambda c: c.update(model_type="qwen2"),
            "model.layers.0.self_attn.k_proj.bias and 11 more are not in the weight files",
        ),
        (lambda c: c.update(hidden_size=64), ""),
        (lambda c: c.update(hidden_size="wide"), "hidden_size"),
        (lambda c: c.update(model_type=["llama"]), ""),
        (lambda c: c.pop("model_type"), ""),
    ],
)
def test_a_dense_model_with_another_configuration(dense, change, message):
    edit(dense, change)
    refused(dense, message)


def replaced(config):
    return config["subfit"]["sites"][0]


def other(config):
    """A site of the other kind."""
    return next(site for site in config["subfit"]["sites"] if site["kind"] != replaced(config)["kind"])


SECTION = {
    "is no mapping": (lambda c: c.update(subfit=[1]), "subfit is [1]; it must be a mapping"),
    "is gone": (lambda c: c.pop("subfit"), "subfit is None; it must be a mapping"),
    "without sites": (lambda c: c["subfit"].update(sites=[]), "its weights are not those of its config.json"),
    "sites missing": (lambda c: c["subfit"].pop("sites"), "subfit: sites is missing; it must be a list"),
    "one site less": (lambda c: c["subfit"]["sites"].pop(), "its weights are not those of its config.json"),
    "a site twice": (lambda c: c["subfit"]["sites"].append(replaced(c)), "which another site has, too"),
    "an unknown key": (
        lambda c: replaced(c).update(widht=3),
        "subfit.sites[0]: unknown option 'widht'; did you mean 'width'?",
    ),
    "newer": (lambda c: c["subfit"].update(format_version=3, more=1), "written by a newer subfit (format 3"),
    "version": (lambda c: c["subfit"].update(format_version="2"), "format_version is '2'; it must be a whole number"),
    "base": (lambda c: c["subfit"].update(base_model_type="lama"), "base_model_type is 'lama', which transformers has no"),
    "base without": (
        lambda c: c["subfit"].update(base_model_type="vit"),
        "base_model_type is 'vit', which transformers has no",
    ),
    "base of another": (lambda c: c["subfit"].update(base_model_type="phi"), ""),
    "counter": (lambda c: c["subfit"].update(counter="model"), "subfit.counter is 'model'; it must be None"),
    "kind": (lambda c: replaced(c).update(kind="ffm"), "sites[0].kind is 'ffm'; it must be attention or mixer or ffn"),
    "other kind": (lambda c: replaced(c).update(kind=other(c)["kind"]), "sites[0].kind is"),
    "layer": (lambda c: replaced(c).update(layer=99), "sites[0].layer is 99; it must be from 0 to 3"),
    "negative layer": (lambda c: replaced(c).update(layer=-1), "sites[0].layer is -1; it must be from 0 to 3"),
    "path": (lambda c: replaced(c).update(path="model.layers.9.mlp"), "sites[0].path is 'model.layers.9.mlp', which is no"),
    "empty path": (lambda c: replaced(c).update(path=""), "sites[0].path is '', which is no module"),
    "path of another layer": (lambda c: replaced(c).update(path="model.layers.0.mlp", layer=1), "is no module of layer 1"),
    "norm": (lambda c: replaced(c).update(skipped_norms=["model.norm"]), "names 'model.norm', which is no norm of the site"),
    "slot": (lambda c: replaced(c).update(slot=1000000), "sites[0].slot is 1000000; it must be"),
    "returns": (lambda c: replaced(c).update(returns=10**12), "sites[0].returns is 1000000000000; it must be from 0 to 9"),
    "wrong returns": (lambda c: replaced(c).update(returns=0 if replaced(c)["returns"] else 2), ""),
    "width": (lambda c: replaced(c).update(width=16), "sites[0].width is 16; it must be 32"),
    "class": (lambda c: replaced(c)["bypass"].update({"class": "Evil"}), "'Evil' is neither in torch.nn nor in subfit"),
    "class of torch": (
        lambda c: replaced(c).update(bypass={"class": "Module"}),
        "sites[0].bypass does not read 32 features",
    ),
    "no class": (lambda c: replaced(c).update(bypass={}), "sites[0].bypass cannot be built: KeyError: 'class'"),
    "class that is a list": (
        lambda c: replaced(c).update(bypass={"class": []}),
        "sites[0].bypass cannot be built: TypeError",
    ),
    "more heads than there are": (
        lambda c: replaced(c).update(bypass={"class": "KeptGroups", "kept": 10**12, "beside": {"class": "Zero"}}),
        "sites[0].bypass cannot be built: ValueError: there is no Attention of which so many heads could be kept",
    ),
    "groups": (
        lambda c: replaced(c).update(
            bypass={"class": "KeptGroups", "kept": 10**12, "beside": {"class": "Zero"}}, groups=10**12
        ),
        "sites[0].bypass cannot be built: ",
    ),
    "huge": (lambda c: replaced(c).update(bypass=linear(32, 10**15)), "sites[0].bypass"),
    "wrong output": (lambda c: replaced(c).update(bypass=linear(32, 31)), "sites[0].bypass gives 31 features of 32"),
    "wrong input": (lambda c: replaced(c).update(bypass=linear(31, 32)), "sites[0].bypass does not read 32 features"),
    "another bypass": (lambda c: replaced(c).update(bypass=linear(32, 32)), "its weights are not those of its config.json"),
    "arguments": (lambda c: replaced(c).update(bypass=linear("a", 32)), "sites[0].bypass cannot be built: TypeError"),
    "shared": (lambda c: replaced(c).update(bypass={"shared": "7"}), "sites[0].bypass cannot be built: KeyError: '7'"),
    "shared is a list": (lambda c: c["subfit"].update(shared=[]), "subfit.shared is []; it must be a mapping"),
    "deep": (lambda c: replaced(c).update(bypass=nested(400)), "recursion"),
}


def linear(features, wanted):
    return {"class": "Linear", "arguments": {"in_features": features, "out_features": wanted, "bias": True}}


def nested(depth):
    return {"class": "Sequential", "children": [nested(depth - 1)]} if depth else linear(32, 32)


@pytest.mark.parametrize("case", SECTION)
def test_a_section_that_was_edited(compressed, case):
    change, message = SECTION[case]
    edit(compressed, change)
    refused(compressed, message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "compression.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other", "list"])
def test_damaged_files_are_one_line(compressed, name, damage, capsys):
    whole = (compressed / name).read_bytes()
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"\xff\xfe\x00", "list": b"[1, 2]"}[damage]
    (compressed / name).write_bytes(content)
    assert main(["evaluate", str(compressed), *EVALUATE]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len([line for line in said.err.splitlines() if "error" in line]) == 1


def test_a_weight_that_was_flipped_is_found(compressed, capsys):
    load(str(compressed), verify=True)
    weights = load_file(compressed / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, compressed / "model.safetensors", {"format": "pt"})
    load(str(compressed))
    with pytest.raises(SubFitError, match="is not what was written: model.safetensors was changed since"):
        load(str(compressed), verify=True)
    assert main(["evaluate", str(compressed), *EVALUATE]) == 2
    assert "model.safetensors was changed since" in capsys.readouterr().err


def test_a_configuration_that_was_changed_and_a_file_that_is_new_are_found(compressed):
    save_file({"x": torch.zeros(1)}, compressed / "more.safetensors")
    with pytest.raises(SubFitError, match="more.safetensors is new since"):
        load(str(compressed), verify=True)
    (compressed / "more.safetensors").unlink()
    edit(compressed, lambda c: c.update(rms_norm_eps=0.5))
    with pytest.raises(SubFitError, match="config.json was changed since"):
        load(str(compressed), verify=True)


def test_what_has_no_digests_cannot_be_verified(dense, compressed):
    with pytest.raises(SubFitError, match="cannot be verified: it has no compression.json with the digests"):
        load(str(dense), verify=True)
    record = json.loads((compressed / "compression.json").read_text())
    del record["files"]
    (compressed / "compression.json").write_text(json.dumps(record))
    with pytest.raises(SubFitError, match="cannot be verified"):
        load(str(compressed), verify=True)
    assert main(["evaluate", str(compressed), *EVALUATE]) == 0


def test_names_that_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    refused("gone/deeper/model", "the folder gone/deeper/model does not exist (paths are relative to")
    refused(str(tmp_path / "gone"), "gone does not exist")
    refused("file.txt", "it is a file; a model is a folder, a .gguf file or a name on the hub")
    refused(".", "the folder has no config.json")
    refused("nobody/nothing", "there is no such folder, and of the hub: ")
