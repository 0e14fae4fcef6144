"""What is computed in float32 where a type would be emulated, and saved in the checkpoint's type."""

import json
import os
import platform

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from safetensors.torch import load_file

import subfit
from subfit.benchmarking.benchmark import benchmark
from subfit.benchmarking.workload import Workload
from subfit.calibration.settings import Data
from subfit.model import dtypes
from subfit.model.loading import load

CPU = torch.device("cpu")
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}  # instructions that have no bfloat16
RUN = {"calibration": {"windows": 40, "length": 32}, "device": "cpu", "sparsity": 0.5}
TUNING = {"trainer": {"max_steps": 20, "val_check_interval": 5}, "learning_rate": 1e-3}


@pytest.fixture(params=["bfloat16", "float16"])
def narrow(request):
    return getattr(torch, request.param)


@pytest.fixture
def folder(tmp_path, narrow):
    """A tiny Llama in a narrow type."""
    tiny_model().to(narrow).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def emulated(monkeypatch):
    """On a processor that computes in no narrow type natively."""
    monkeypatch.setattr(dtypes, "is_native", lambda dtype, device: dtype not in dtypes.NARROW)


@pytest.fixture
def native(monkeypatch):
    monkeypatch.setattr(dtypes, "is_native", lambda dtype, device: True)


def test_auto_is_the_checkpoints_type_where_it_is_native(folder, native, narrow):
    model, _ = load(folder, device="cpu")
    assert model.dtype == dtypes.saved_dtype(model) == narrow and dtypes.rounding_of(model) is None


def test_auto_computes_in_float32_where_the_type_would_be_emulated_and_says_so_once(folder, emulated, narrow, capsys):
    dtypes._tell.cache_clear()
    model, _ = load(folder, device="cpu")
    load(folder, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and dtypes.saved_dtype(model) == narrow
    given, _ = load(folder, dtype=dtypes.name_of(narrow), device="cpu")
    assert given.dtype == narrow  # what is asked for is obeyed
    assert all(torch.equal(a, b.float()) for a, b in zip(model.parameters(), given.parameters(), strict=True))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "computing in" in line]
    assert f"computing in float32, weights stay {dtypes.name_of(narrow)}" in line


def test_float32_that_is_asked_for_is_float32(folder, emulated, tmp_path):
    result = subfit.compress(folder, dtype="float32", output=tmp_path / "out", **RUN)
    assert result.record["dtypes"] == {"weights": "float32", "compute": "float32"}
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fitting": "sequential", "attention_bypass": "linear", "ffn_bypass": "mlp"},
        {"config": "replaceme"},
        {"config": "llm_streamline"},
        {"finetune": TUNING},
        {"finetune": {**TUNING, "lora": {"layers": 4}}},
    ],
    ids=["one-shot", "sequential", "folded", "retrained", "fine-tuned", "adapters"],
)
@pytest.mark.parametrize("narrow", [torch.bfloat16])
def test_what_is_evaluated_is_what_is_saved(folder, emulated, narrow, tmp_path, text_file, options, request):
    if "finetune" in options:
        request.getfixturevalue("spoilt")
    text = {"path": str(text_file), "windows": 3, "length": 32}
    result = subfit.compress(folder, output=tmp_path / "out", evaluation=text, **RUN, **options)
    record = result.record
    assert record["dtypes"] == {"weights": "bfloat16", "compute": "float32"}
    if "finetune" in options:
        assert record["finetune"]["kept"] == "fine-tuned"
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, value.to(narrow).to(value.dtype)), name
    found = subfit.evaluate(str(tmp_path / "out"), reference=folder, data=Data(**text), device="cpu")
    assert found["dtypes"] == record["dtypes"]
    for name in ("perplexity", "reference_perplexity", "kl", "agreement"):
        assert found[name] == record["evaluation"][name], name


def test_a_model_that_was_loaded_is_computed_as_it_is_and_saved_in_its_checkpoints_type(folder, emulated, narrow, tmp_path):
    model, tokenizer = load(folder, device="cpu")
    for dtype in ("float32", dtypes.name_of(narrow)):
        with pytest.raises(subfit.SubFitError, match=f"the loaded model is {dtypes.name_of(narrow)} computed in float32"):
            subfit.compress(model, tokenizer=tokenizer, dtype=dtype, **RUN)
    record = subfit.compress(model, tokenizer=tokenizer, output=tmp_path / "out", **RUN).record
    assert record["dtypes"] == {"weights": dtypes.name_of(narrow), "compute": "float32"}
    assert record["configuration"]["dtype"] == "auto"
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {narrow}
    again = subfit.compress(**{**record["configuration"], "output": str(tmp_path / "again")}).record
    assert again["evaluation"] == record["evaluation"] and again["dtypes"] == record["dtypes"]


def test_sizes_are_those_of_what_is_saved(folder, emulated, narrow):
    found = subfit.evaluate(folder, data=Data(windows=1, length=8), device="cpu")
    given = subfit.evaluate(folder, data=Data(windows=1, length=8), device="cpu", dtype=dtypes.name_of(narrow))
    assert found["kv_bytes_per_token"] == given["kv_bytes_per_token"]


def test_a_benchmark_has_both_models_in_the_same_types(folder, emulated, narrow, tmp_path):
    subfit.compress(folder, output=tmp_path / "out", **{**RUN, "evaluation": {"windows": 0}})
    workload = Workload(prompt_lengths=(8,), contexts=(), repeats=1, warmup=0)
    found, given = (
        benchmark(str(tmp_path / "out"), reference=folder, workload=workload, device="cpu", dtype=dtype)
        for dtype in ("auto", dtypes.name_of(narrow))
    )
    assert found["setting"]["dtype"] == "float32" and given["setting"]["dtype"] == dtypes.name_of(narrow)
    assert found["size"] == given["size"]


def test_weights_that_a_checkpoint_keeps_wider_stay_so(emulated):
    model = tiny_model().bfloat16()
    norm = model.model.norm.float()
    norm.weight.data += 1e-4
    dtypes.compute_natively(model, CPU)
    saved = dtypes.as_saved(model, model.state_dict())
    assert torch.equal(saved.pop("model.norm.weight"), norm.weight) and norm.weight.dtype == torch.float32
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


def test_ablations_tell_the_types_apart_that_a_machine_computes_in(folder, native, monkeypatch):
    from subfit.ablation.dependencies import calibration_digest, dependencies
    from subfit.config import resolve

    options = resolve({"model": folder, "device": "cpu"})
    tokens = torch.zeros(2, 4, dtype=torch.long)
    here = dependencies(options, [], []), calibration_digest(load(folder, device="cpu")[0], tokens, 2)
    monkeypatch.setattr(dtypes, "is_native", lambda dtype, device: dtype not in dtypes.NARROW)
    there = dependencies(options, [], []), calibration_digest(load(folder, device="cpu")[0], tokens, 2)
    assert here[0]["native_dtypes"] == ["bfloat16", "float16"] and there[0]["native_dtypes"] == []
    assert here[1] != there[1]
    given = resolve({"model": folder, "device": "cpu", "dtype": "bfloat16"})
    assert dependencies(given, [], [])["native_dtypes"] is None


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="instructions of x86")
def test_a_processor_that_is_told_to_use_older_instructions_computes_in_float32(subfit, tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    small = ["--calibration.windows", 4, "--calibration.length", 16, "--evaluation.windows", 1, "--device", "cpu", "--json"]
    done = subfit("compress", "--model", "tiny", *small, env={**os.environ, **OLDER})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dtypes"] == {"weights": "bfloat16", "compute": "float32"}
    assert done.stderr.count("computing in float32, weights stay bfloat16 (--dtype bfloat16") == 1


def test_a_measured_product_tells_an_emulated_type_from_a_native_one(monkeypatch):
    clock = [0.0]

    class Timed(torch.Tensor):
        """Takes ten times as long to multiply in float16, and half as long in bfloat16, as in float32."""

        def __matmul__(self, other):
            clock[0] += {torch.float16: 10.0, torch.bfloat16: 0.5, torch.float32: 1.0}[self.dtype]

    monkeypatch.setattr(dtypes.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "ones", lambda *size, dtype: torch.empty(size, dtype=dtype).as_subclass(Timed))
    assert dtypes._is_faster_than_float32(torch.bfloat16) and not dtypes._is_faster_than_float32(torch.float16)
