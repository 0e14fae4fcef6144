"""Every causal model type of transformers, in the cells of `families`, or refused in a line; docs/families.md shows it."""

import json
import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

import families_page
import forked
import pytest
import transformers
from families import outcome
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from subfit.model.threads import usable_cores

EXPECTED = json.loads(families_page.EXPECTED.read_text()) if families_page.EXPECTED.exists() else {"types": {}}
SAMPLE = ["bamba", "falcon", "falcon_h1", "gemma3", "gemma4_text", "granitemoehybrid", "nemotron_h", "phi4_multimodal"]
SAMPLE += ["qwen3_5_text", "xmod"]
WITHOUT_SUBFIT = """
import sys
from pathlib import Path
sys.modules["subfit"] = None  # importing it fails: as if it were not installed
import torch
from transformers import AutoModelForCausalLM
for folder in sorted(Path(sys.argv[1]).glob("*-ends")):
    expected = torch.load(folder / "expected.pt")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        found = model(expected["tokens"], use_cache=False).logits
    if not (found - expected["logits"]).abs().max() <= 1e-3 * expected["logits"].abs().max():
        print(folder.name)
"""


def in_forks(names, folder: Path) -> dict:
    """The outcomes of some model types, each in a fork of this process, which has imported everything."""
    context, waiting, running = get_context("fork"), list(names), {}
    while waiting or running:
        while waiting and len(running) < usable_cores():
            process = context.Process(target=write_outcome, args=(waiting.pop(0), folder))
            process.start()
            running[process.sentinel] = process
        for ended in wait(running):
            running.pop(ended).join()
    files = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) if path.exists() else {"failed": "killed"} for name, path in files.items()}


def write_outcome(name: str, folder: Path) -> None:
    """Writes the outcome of a model type to a file; anything but an error of SubFit is a failure."""
    try:
        found = outcome(name, folder)
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    (folder / f"{name}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The outcomes of all model types; the checkpoints that one further process could not read are failures, too."""
    folder = tmp_path_factory.mktemp("families")
    outcomes = in_forks(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, folder)
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    read = forked.run([sys.executable, "-c", WITHOUT_SUBFIT, folder], folder, environment, fresh=True)
    assert read.returncode == 0, read.stderr
    for name in read.stdout.split():
        outcomes[name.removesuffix("-ends")] = {"failed": "read without subfit, it is another model"}
    if os.environ.get("FAMILIES_UPDATE"):
        families_page.write({"transformers": transformers.__version__, "types": outcomes})
        EXPECTED["types"] = outcomes
    return outcomes


@pytest.mark.families
@pytest.mark.parametrize("name", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_model_type_is_compressed_or_refused_as_expected(found, name):
    assert "failed" not in found[name]
    assert found[name] == EXPECTED["types"][name]


@pytest.mark.parametrize("name", SAMPLE)
def test_some_model_types_are_compressed_as_expected(name, tmp_path):
    assert outcome(name, tmp_path) == EXPECTED["types"][name]


def test_the_page_shows_what_is_expected():
    assert families_page.PAGE.read_text() == families_page.page(EXPECTED)


def test_most_model_types_are_compressed():
    assert sum("submodules" in found for found in EXPECTED["types"].values()) >= 95
