"""A saved model is the same model in a fresh process, with our package and without it."""

import json
import sys
import textwrap

import pytest
import torch
from architectures import tiny_model_of
from compressed import FRESH
from conftest import FAMILIES, Given, recipe, tiny_model, tiny_tokenizer, tiny_tokens
from forked import run
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import subfit
from subfit.bypass import Bypass
from subfit.errors import SubFitError
from subfit.model import checkpoint
from subfit.model.loading import load
from subfit.pipeline import compress_model
from subfit.tracking.plots import draw_scores


def saved(folder, family="llama", **given):
    made = {"sparsity": 0.5, **given}
    result = compress_model(tiny_model(family), tiny_tokens(), recipe(**made))
    checkpoint.save(result.model, result.tokenizer, result.record, str(folder), draw_scores)
    return result


def in_fresh_process(folder, tmp_path):
    tokens = tiny_tokens(3, seed=4)
    torch.save(tokens, tmp_path / "tokens.pt")
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(FRESH),
        str(folder),
        str(tmp_path / "tokens.pt"),
        str(tmp_path / "out.pt"),
    ]
    done = run(command, tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    return tokens, torch.load(tmp_path / "out.pt")


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_bit_equal_logits_in_a_fresh_process_without_the_package(tmp_path, family):
    result = saved(tmp_path / "model", family)
    tokens, found = in_fresh_process(tmp_path / "model", tmp_path)
    with torch.no_grad():
        assert torch.equal(found["logits"], result.model(tokens).logits)
        assert torch.equal(found["generated"], result.model.generate(tokens[:1, :5], max_new_tokens=5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", [None, ["attention.0", "ffn.0", "attention.1", "attention.2", "attention.3"]], ids=str)
def test_bit_equal_logits_by_load(tmp_path, family, names):
    result = saved(tmp_path / "model", family, **({"selector": Given(names)} if names else {}))
    model, _ = load_without_tokenizer(tmp_path / "model")
    tokens = tiny_tokens(3, seed=4)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, result.model(tokens).logits)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in result.model.parameters())


def load_without_tokenizer(folder):
    from conftest import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder)
    return load(str(folder))


def test_a_shared_basis_is_saved_once(tmp_path):
    saved(tmp_path / "model", ffn_bypass={"class_path": "shared_low_rank", "init_args": {"rank": 7}})
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert [name for name, t in tensors.items() if t.shape == (7, 32)] == ["subfit_shared.0.weight"]


@pytest.mark.parametrize("where", ["device", "disk"])
def test_what_is_beside_the_weights_is_carried_over_and_tied_ones_are_stored_once(tmp_path, text_file, where):
    dense, output = tmp_path / "dense", tmp_path / "compressed"
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()  # whose embedding and head are tied
    model.generation_config.update(do_sample=True, temperature=0.3, eos_token_id=[2, 7])
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    for its in (model, tokenizer):
        its.save_pretrained(dense)
    data = {"path": text_file, "windows": 6, "length": 24}
    subfit.compress(dense, calibration=data, evaluation={"windows": 2}, device_map=where, output=output)
    own, found = (GenerationConfig.from_pretrained(folder).to_diff_dict() for folder in (dense, output))
    assert found == own and found["temperature"] == 0.3 and found["eos_token_id"] == [2, 7]
    turn = [{"role": "user", "content": "Well?"}]
    assert AutoTokenizer.from_pretrained(output).apply_chat_template(turn, tokenize=False) == "<user>Well?"
    stored = [name for file in output.glob("*.safetensors") for name, its in header(file).items() if 101 in its["shape"]]
    assert stored == ["model.embed_tokens.weight"]
    loaded, _ = load(str(output))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_model_that_reads_images_keeps_its_processor(tmp_path, text_file):
    dense, output = tmp_path / "dense", tmp_path / "compressed"
    model = tiny_model_of("gemma3")
    for its in (model, tiny_tokenizer()):
        its.save_pretrained(dense)
    (dense / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    subfit.compress(
        dense, calibration={"path": text_file, "windows": 6, "length": 24}, evaluation={"windows": 2}, output=output
    )
    name = "preprocessor_config.json"
    assert (output / name).read_bytes() == (dense / name).read_bytes()
    size = model.config.vision_config.image_size
    tokens = torch.full((2, model.config.mm_tokens_per_image), model.config.image_token_id)
    compressed, _ = load(str(output))
    with torch.no_grad():
        one, other = compressed(tokens, pixel_values=torch.randn(2, 3, size, size)).logits
    assert one.isfinite().all() and not torch.allclose(one, other)


def header(file):
    """What a safetensors file says of each tensor in it."""
    with file.open("rb") as content:
        said = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    return {name: its for name, its in said.items() if name != "__metadata__"}


def test_a_loaded_model_can_be_saved_and_loaded_again(tmp_path):
    result = saved(tmp_path / "first")
    model, _ = load_without_tokenizer(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    tokens, found = in_fresh_process(tmp_path / "second", tmp_path)
    with torch.no_grad():
        assert torch.equal(found["logits"], result.model(tokens).logits)


def test_without_trust_it_does_not_load_as_a_dense_model(tmp_path):
    saved(tmp_path / "model")
    for loader, options in [(AutoModelForCausalLM, {}), (AutoModel, {"trust_remote_code": False}), (LlamaForCausalLM, {})]:
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            loader.from_pretrained(tmp_path / "model", **options)


def test_its_tokenizer_and_its_configuration_open_without_asking_for_trust(tmp_path, monkeypatch):
    saved(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert not asked
    assert type(config) is LlamaConfig and tokenizer("a b").input_ids == tiny_tokenizer()("a b").input_ids
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", config=config, trust_remote_code=True)
    assert type(model).__name__ == "SubFitLlamaForCausalLM"


class Gate(nn.Module):
    """A module of a plug-in's own."""

    def __init__(self, width: int, power: int):
        super().__init__()
        self.width, self.power = width, power
        self.weight = nn.Parameter(torch.linspace(-1, 1, width))

    def forward(self, x):
        return torch.sigmoid(x * self.weight) ** self.power


class Gated(Bypass):
    def fit(self, branch, moments, shared):
        return nn.Sequential(Gate(branch.site.width, power=2), nn.GELU(approximate="tanh"))


def test_a_plugins_own_module_travels_with_the_checkpoint(tmp_path):
    result = saved(tmp_path / "model", ffn_bypass=Gated())
    tokens, found = in_fresh_process(tmp_path / "model", tmp_path)
    with torch.no_grad():
        assert torch.equal(found["logits"], result.model(tokens).logits)
    with pytest.raises(
        SubFitError, match="'Gate' is neither in torch.nn nor in subfit; .* let that run: --trust_remote_code"
    ):
        load_without_tokenizer(tmp_path / "model")
    model, _ = load(str(tmp_path / "model"), trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, result.model(tokens).logits)


PLUGIN = """
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from subfit.bypass import Bypass
from subfit.model.modeling_subfit import Sum as Added

POWER, SHIFT = 2, 0.25


def half(x):
    return x / math.sqrt(4.0) * SHIFT


class Base(nn.Module):
    def forward(self, x):
        return F.silu(half(x)) ** POWER


class Curve(Base):
    {constructor}


class Curved(Bypass):
    def fit(self, branch, moments, shared):
        width = branch.site.width
        {before}
        return {returned}
"""
SOUND = {
    "constructor": "pass",
    "before": "pass",
    "returned": "Added(Curve(), nn.Linear(width, width))",
}


def plugin(tmp_path, **changes):
    """A plug-in file whose module uses imports, constants, a function and a base class of its file."""
    (tmp_path / "curved.py").write_text(PLUGIN.format(**SOUND | changes))
    return str(tmp_path / "curved.py")


def test_a_plugins_module_travels_with_what_it_needs_of_its_file(tmp_path):
    result = saved(tmp_path / "model", ffn_bypass=plugin(tmp_path))
    code = (tmp_path / "model" / "modeling_subfit.py").read_text()
    assert "import math" in code and "dataclass" not in code and "import subfit" not in code and "from subfit" not in code
    (tmp_path / "curved.py").unlink()
    tokens, found = in_fresh_process(tmp_path / "model", tmp_path)
    with torch.no_grad():
        assert torch.equal(found["logits"], result.model(tokens).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"constructor": "def __init__(self):\n        super().__init__()\n        self.base = Bypass"},
            r"Curve .*cannot be saved with a checkpoint: it needs `from subfit\.bypass import Bypass`",
        ),
        (
            {"constructor": "def __init__(self):\n        super().__init__()\n        import beside"},
            "it needs `import beside`, which is not installed",
        ),
        (
            {"constructor": "def __init__(self, width):\n        super().__init__()", "returned": "Curve(3)"},
            "missing 1 required positional argument: 'width'",
        ),
        (
            {
                "before": "class Curve(nn.Linear):\n            pass",
                "returned": "Curve(width, width)",
            },
            r"Curve.*must be defined at the top level of a \.py file",
        ),
        (
            {"constructor": "pass\nclass Shared(Curve):\n    pass", "returned": "Shared()"},
            "needs 'Shared', a name that modeling_subfit.py has for something else; rename it",
        ),
    ],
)
def test_a_plugins_module_that_cannot_travel_is_refused_once_it_is_fitted(tmp_path, monkeypatch, changes, message):
    (tmp_path / "beside.py").write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SubFitError, match=message) as caught:
        compress_model(tiny_model(), tiny_tokens(), recipe(ffn_bypass=plugin(tmp_path, **changes), sparsity=0.5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("made = Curve(); made.forward = lambda x: x; return made", "its logits differ by"),
        (
            "made = nn.Linear(width, width); made.register_buffer('extra', torch.ones(1)); return made",
            "its weight .*extra differs",
        ),
    ],
)
def test_a_checkpoint_that_loads_as_another_model_gets_no_folder(tmp_path, before, message):
    with pytest.raises(SubFitError, match=f"the checkpoint does not load as the same model: {message}"):
        saved(tmp_path / "out" / "model", ffn_bypass=plugin(tmp_path, before=before))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_checkpoint_whose_code_does_not_run_gets_no_folder(tmp_path):
    result = compress_model(tiny_model(), tiny_tokens(), recipe(sparsity=0.5))
    result.model.plugin_code = "\nimport nowhere_to_be_found\n"
    with pytest.raises(SubFitError, match="the checkpoint does not load again: ModuleNotFoundError: .*nowhere_to_be_found"):
        checkpoint.save(result.model, result.tokenizer, result.record, str(tmp_path / "out" / "model"), draw_scores)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_in_the_folder(tmp_path):
    result = saved(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "modeling_subfit.py", "compression.json", "README.md", "scores.png"} <= names
    assert json.loads((tmp_path / "model" / "compression.json").read_text()) == json.loads(json.dumps(result.record))
    assert (tmp_path / "model" / "scores.png").read_bytes()[:4] == b"\x89PNG"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "trust_remote_code=True" in card and result.record["selected"][0] in card
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]  # nothing beside it


def test_an_existing_folder_is_never_touched(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("keep")
    with pytest.raises(SubFitError, match="exists; give a new one"):
        saved(tmp_path / "model")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["mine"]


def test_a_disk_without_room_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(SubFitError, match="GB free; up to .* GB are needed"):
        checkpoint.check_space(str(tmp_path / "new" / "model"), tiny_model())


@pytest.mark.parametrize("name", ["model.safetensors", "compression.json"])
def test_a_disk_that_fills_up_while_saving_leaves_nothing(tmp_path, name):
    """A real limit on file sizes, in a process of its own: the write fails in the middle."""
    code = f"""
    import resource, signal, sys
    sys.path[:0] = {sys.path!r}
    from conftest import recipe, tiny_model, tiny_tokens
    from subfit.model import checkpoint
    from subfit.errors import SubFitError
    from subfit.pipeline import compress_model
    from subfit.tracking.plots import draw_scores
    result = compress_model(tiny_model(), tiny_tokens(), recipe(sparsity=0.5))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({20_000 if name == "model.safetensors" else 150_000},) * 2)
    if {name == "compression.json"}:
        result.record["filling"] = "x" * 200_000
    try:
        checkpoint.save(result.model, result.tokenizer, result.record, "model", draw_scores)
    except SubFitError as error:
        print(error)
    """
    done = run([sys.executable, "-c", textwrap.dedent(code)], tmp_path)
    assert "cannot write model" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
