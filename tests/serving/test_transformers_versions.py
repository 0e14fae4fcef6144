"""A checkpoint opens in the oldest version of transformers that is supported, in a later one, and in the newest."""

import os
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest
import torch
from compressed import SELECTIONS, compressed
from conftest import FAMILIES, tiny_tokenizer, tiny_tokens

OLDEST = "5.17.0"
VERSIONS = [f"=={OLDEST}", "==5.19.0", "<6"]  # the last: the newest that there is
OPEN = """
import importlib.util, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

assert importlib.util.find_spec("subfit") is None
ids = torch.load("ids.pt")
settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
found = {}
for name in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
    assert AutoTokenizer.from_pretrained(name)("a")["input_ids"] == [68]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
    for options in ({}, {"past_key_values": DynamicCache()}, {"cache_implementation": "static", "disable_compile": True}):
        cached = model.generate(ids, attention_mask=mask, use_cache=True, **options, **settings)
        assert torch.equal(cached, uncached), (name, options)
    whole = torch.ones_like(ids)
    beams = [model.generate(ids, attention_mask=whole, num_beams=2, use_cache=cache, **settings) for cache in (True, False)]
    assert torch.equal(*beams), name
    with torch.no_grad():
        found[name] = {"logits": model(ids, attention_mask=whole).logits, "tokens": uncached}
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module", params=VERSIONS)
def python(request, tmp_path_factory) -> Path:
    """The Python of an environment with transformers of its own, which shares all other packages with this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(str(Path(torch.__file__).parents[1]))  # a .pth file there is not read: no subfit
    command = [python, "-m", "pip", "install", "--quiet", "--upgrade", f"transformers{request.param}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"transformers{request.param} cannot be installed: {done.stderr}"
    return python


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with checkpoints of every family, with what this version makes of each."""
    folder, expected = tmp_path_factory.mktemp("checkpoints"), {}
    ids = tiny_tokens(3, 7, seed=1)
    torch.save(ids, folder / "ids.pt")
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for family in FAMILIES:
        for selection, names in SELECTIONS.items():
            model = compressed(family, names)
            name = f"{family}-{selection.replace(' ', '-')}"
            model.save_pretrained(folder / name)
            tiny_tokenizer().save_pretrained(folder / name)
            settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
            with torch.no_grad():
                logits = model(ids, attention_mask=torch.ones_like(ids)).logits
                tokens = model.generate(ids, attention_mask=mask, **settings)
            expected[name] = {"logits": logits, "tokens": tokens}
    return folder, expected


def test_the_oldest_version_is_the_one_that_is_required():
    required = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"transformers>={OLDEST.removesuffix('.0')},<6" in required


def test_checkpoints_open_and_generate_the_same_without_a_warning(python, checkpoints, tmp_path):
    folder, expected = checkpoints
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "TQDM_DISABLE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [python, "-c", OPEN, *expected]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "of type" not in done.stderr, done.stderr  # the warning about the model's type
    assert "custom code" not in done.stdout, done.stdout  # the question whether it may run
    found = torch.load(folder / "found.pt")
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name]["logits"], wanted["logits"], rtol=1e-5, atol=1e-5)
        assert torch.equal(found[name]["tokens"], wanted["tokens"]), name
