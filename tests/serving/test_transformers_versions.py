"""A checkpoint opens in the oldest version of transformers that is supported, which is installed beside the current one."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from compressed import SELECTIONS, compressed
from conftest import FAMILIES, tiny_tokens

OLDEST = "5.17.0"
OPEN = """
import sys
sys.modules["subfit"] = None  # importing it fails: as if it were not installed
import torch, transformers
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
assert transformers.__version__ == sys.argv[1], transformers.__version__
ids = torch.load("ids.pt")
settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
found = {}
for name in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
    for options in ({}, {"past_key_values": DynamicCache()}, {"cache_implementation": "static", "disable_compile": True}):
        cached = model.generate(ids, attention_mask=mask, use_cache=True, **options, **settings)
        assert torch.equal(cached, uncached), (name, options)
    beams = [model.generate(ids, num_beams=2, use_cache=cache, **settings) for cache in (True, False)]
    assert torch.equal(*beams), name
    with torch.no_grad():
        found[name] = model(ids).logits
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory) -> Path:
    """A folder for the front of the import path: the oldest transformers, and a hub client that suits it."""
    folder = tmp_path_factory.mktemp("oldest")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder)]
    done = subprocess.run(
        [*command, f"transformers=={OLDEST}", "huggingface_hub<2"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"transformers {OLDEST} cannot be installed: {done.stderr}"
    return folder


def test_the_oldest_version_is_the_one_that_is_required():
    required = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"transformers>={OLDEST.removesuffix('.0')},<6" in required


def test_checkpoints_of_every_family_open_and_generate_in_the_oldest_version(oldest, tmp_path):
    expected = {}
    ids = tiny_tokens(3, 7, seed=1)
    torch.save(ids, tmp_path / "ids.pt")
    for family in FAMILIES:
        for name in SELECTIONS:
            model = compressed(family, SELECTIONS[name])
            folder = f"{family}-{name.replace(' ', '-')}"
            model.save_pretrained(tmp_path / folder)
            with torch.no_grad():
                expected[folder] = model(ids).logits
    path = os.pathsep.join([str(oldest), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", OPEN, OLDEST, *expected]
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = torch.load(tmp_path / "found.pt")
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=1e-5, atol=1e-5)
