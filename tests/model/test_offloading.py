"""A model whose decoder layers stay on the disk is compressed as one in memory, where this one does not fit."""

import contextlib
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokenizer, tiny_tokens

import subfit
from subfit.cli.main import main
from subfit.errors import SubFitError
from subfit.evaluation import evaluate
from subfit.model import memory
from subfit.model.loading import load_placed
from subfit.model.offloading import is_offloaded, loaded, state_parts
from subfit.model.submodules import decoder_layers

RECORDED = ("scores", "selected", "explained_variance", "size", "evaluation")
RECIPES = {
    "subfit": {"config": "subfit"},
    "sequential": {"config": "subfit", "fitting": "sequential"},
    "greedy": {"config": "greedy"},
    "refit": {"config": "subfit", "fitting": "sequential", "refit_kept": 0.1},
    "folded": {
        "fitting": "sequential",
        "selector": {"class_path": "given", "init_args": {"sites": ["layer.2"]}},
        "attention_bypass": "identity",
        "ffn_bypass": "replace_me",
    },
}


def folder_of(family, tmp_path):
    folder = tmp_path / family
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def compressed(folder, text_file, where, **given):
    given = {"sparsity": 0.5, "calibration": {"path": str(text_file), "windows": 6, "length": 24}, **given}
    output = folder.with_name(f"{where}-compressed")
    return subfit.compress(folder, evaluation={"windows": 2}, output=output, device_map=where, **given), output


@pytest.mark.parametrize(
    ("family", "given"),
    [*((family, "subfit") for family in FAMILIES), *(("llama", given) for given in RECIPES if given != "subfit")],
)
@torch.no_grad()
def test_bit_equal_to_a_compression_in_memory(tmp_path, text_file, family, given):
    folder = folder_of(family, tmp_path)
    (own, first), (other, second) = (compressed(folder, text_file, where, **RECIPES[given]) for where in ("device", "disk"))
    assert {name: own.record[name] for name in RECORDED} == {name: other.record[name] for name in RECORDED}
    assert is_offloaded(other.model) and not is_offloaded(own.model)
    files = sorted(path.name for path in second.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-0000{len(files)}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) == (4 if given == "folded" else 5)  # nothing is left of a layer there
    (a, _), (b, _) = subfit.load(first), subfit.load(second, verify=True)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    c, _ = subfit.load(second, device_map="disk")
    tokens = tiny_tokens(2)
    assert torch.equal(c(tokens).logits, a(tokens).logits)
    assert torch.equal(c.generate(tokens, max_new_tokens=3), a.generate(tokens, max_new_tokens=3))


@pytest.mark.parametrize("where", [["disk"], ["auto", "--max_memory", "1KB"]], ids=" ".join)
def test_an_evaluation_gives_the_numbers_of_one_in_memory(tmp_path, text_file, where, capsys, monkeypatch):
    folder = folder_of("llama", tmp_path)
    _, made = compressed(folder, text_file, "disk")
    task = tmp_path / "task.jsonl"
    task.write_text("".join(json.dumps({"query": f"{i} + 1 =", "choices": ["1", "3"], "gold": 0}) + "\n" for i in range(4)))
    given = [
        str(made),
        "--reference",
        str(folder),
        "--data",
        f"text={text_file}",
        "samples=self",
        "--windows",
        "2",
        "--length",
    ]
    given += ["24", "--tasks", str(task), "--probes", "--prompts", "7 times 7 is", "--new_tokens", "4", "--json"]
    opened, found = [], []
    monkeypatch.setattr(evaluate, "load_placed", lambda *args: opened.append(load_placed(*args)) or opened[-1])
    for more in ([], ["--device_map", *where]):
        assert main(["evaluate", *given, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
        del found[-1]["seconds"]
    assert [is_offloaded(model) for model, _ in opened] == [False, False, True, True]
    assert found[0] == found[1]


def test_weights_are_in_memory_only_while_they_are_needed(tmp_path):
    model, _ = subfit.load(folder_of("llama", tmp_path), device_map="disk")
    _, layers = decoder_layers(model)
    within = []
    layers[1].mlp.register_forward_hook(lambda *_: within.append([_in_memory(layer) for layer in layers]))
    model(tiny_tokens(1))
    assert within == [[False, True, False, False]]
    layers[2].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tiny_tokens(1))
    with loaded(layers[0], layers[3]):
        assert [_in_memory(layer) for layer in layers] == [True, False, False, True]
    assert not any(_in_memory(layer) for layer in layers)


def _in_memory(layer):
    return any(not p.is_meta for p in layer.parameters())


def test_another_type_is_computed_in(tmp_path):
    folder = tmp_path / "narrow"
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    model, _ = subfit.load(folder, device_map="disk", dtype="float32")
    dense, _ = subfit.load(folder, dtype="float32")
    parts = {name: value.clone() for part in state_parts(model) for name, value in part.items()}
    assert {value.dtype for value in parts.values()} == {torch.float32}
    assert all(torch.equal(value, parts[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"scorer": "taylor"},
            "a gradient needs all weights on the device, and these are on the disk; leave out device_map",
        ),
        ({"finetune": {"trainer": {"max_steps": 1}}}, "a fine-tuning needs all weights on the device"),
        (
            {"fitting": "sequential", "attention_bypass": "decoder_layer", "ffn_bypass": "attention_bypass"}
            | {"selector": {"class_path": "given", "init_args": {"sites": ["layer.2"]}}},
            "retraining a layer needs all weights on the device",
        ),
        ({"max_memory": "1GB"}, "max_memory is for device_map auto, and it is disk"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, text_file, given, said):
    with pytest.raises(SubFitError, match=said):
        compressed(folder_of("llama", tmp_path), text_file, "disk", **given)


def test_auto_goes_by_the_size(tmp_path, monkeypatch):
    folder = folder_of("llama", tmp_path)
    size = sum(p.numel() * p.element_size() for p in subfit.load(folder)[0].parameters())
    for most, expected in ((f"{size / 1000}KB", False), (f"{(size - 1) / 1000}KB", True)):
        assert is_offloaded(subfit.load(folder, device_map="auto", max_memory=most)[0]) is expected
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * size - 2)
    assert is_offloaded(subfit.load(folder, device_map="auto")[0])
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * size)
    assert not is_offloaded(subfit.load(folder, device_map="auto")[0])


@pytest.mark.parametrize("size", ["", "8", "8 apples", "-1GB", "GB"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(SubFitError, match="it must be a size such as 8GB or 512MiB"):
        memory.size_of(size)


def test_sizes_and_limits():
    assert (memory.size_of("8GB"), memory.size_of("512 MiB"), memory.size_of("1.5kb")) == (8 * 10**9, 2**29, 1500)
    code = "import torch; from subfit.model.memory import free_memory; print(free_memory(torch.device('cpu')))"
    limit = 3 * 2**30
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=lambda: _limit(limit), check=True
    )
    assert 0 < int(found.stdout) < limit


def _limit(size):
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


LIMITED = """
import resource, sys
from subfit.cli.main import main
if limit := int(sys.argv.pop(1)):
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""
COMMAND = ["compress", "--config", "subfit", "--sparsity", "0", "--calibration.windows", "4", "--calibration.length", "64"]
COMMAND += ["--evaluation.windows", "2", "--selector", "given", "--selector.sites", '["attention.1", "ffn.3"]']


def large_model(folder, layers, width):
    """A Llama of 64 bytes * width^2 for each layer, in float32."""
    size = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 8, "num_key_value_heads": 8}
    tiny_model(num_hidden_layers=layers, **size).save_pretrained(folder, max_shard_size="300MB")
    tiny_tokenizer().save_pretrained(folder)


def run(folder, text_file, where, limit=0):
    """Replaces two submodules; returns the exit status, what was said and the peak of the process's own memory, in MiB."""
    given = ["--model", folder, "--device_map", where, "--calibration.path", text_file, "--output", folder / where]
    with (folder / "said.txt").open("w+") as said:
        process = forked.start([sys.executable, "-c", LIMITED, limit, *COMMAND, *given], folder, [said.fileno()] * 2)
        status, most = Path(f"/proc/{process.pid}/status"), 0
        while process.poll(0.02) is None:
            with contextlib.suppress(OSError):  # it has ended in the meantime
                most = max([most, *(int(line.split()[1]) for line in status.read_text().splitlines() if "RssAnon" in line)])
        said.seek(0)
        return process.returncode, said.read(), most // 1024


@pytest.mark.real
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not limit the data of a process")
def test_a_model_larger_than_the_limit_of_the_process(tmp_path, text_file):
    large_model(tmp_path, layers=40, width=512)
    weights = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    limit = 600 * 2**20
    assert weights > limit
    code, said, _ = run(tmp_path, text_file, "disk", limit)
    assert code == 0, said
    assert f"  subfit evaluate {tmp_path / 'disk'} --reference {tmp_path} --device_map disk\n" in said
    code, said, _ = run(tmp_path, text_file, "device", limit)
    assert code == 2 and "cannot load the model" in said, said
    assert not Path(tmp_path / "device").exists()


@pytest.mark.real
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is read from /proc")
def test_the_peak_does_not_grow_with_the_depth(tmp_path, text_file):
    peaks = {}
    for layers in (8, 16, 32):
        folder = tmp_path / str(layers)
        large_model(folder, layers, width=384)
        code, said, peaks[layers] = run(folder, text_file, "disk")
        assert code == 0, said
        shutil.rmtree(folder)
    print("peak of the process, MiB, by layers:", peaks)
    assert peaks[32] - peaks[8] < 64 < 24 * 9  # the weights of 24 layers more
