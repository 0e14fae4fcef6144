"""lm-evaluation-harness reads a checkpoint by its own `vllm` model, here on two devices in parallel."""

import json
import subprocess

import pytest
from compressed import loglikelihoods
from conftest import tiny_tokenizer
from vllm_models import ENVIRONMENT, PYTHON, compressed

PAIRS = [("2 times 3 is", " 6"), ("The capital", " of France")]
ASK = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.vllm_causallms import VLLM

if __name__ == "__main__":
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64, "tensor_parallel_size": 2}
    asked = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(json.loads(sys.argv[3]))]
    found = VLLM(pretrained=sys.argv[1], **options).loglikelihood(asked, disable_tqdm=True)
    json.dump([value for value, _ in found], open(sys.argv[2], "w"))
"""


def test_its_vllm_model_gives_the_loglikelihoods_of_transformers(tmp_path):
    given = {"attention_bypass": "low_rank", "ffn_bypass": "shared_low_rank"}
    model, tokenizer = compressed("llama", ["attention.0", "ffn.1", "attention.3", "ffn.3"], **given), tiny_tokenizer()
    model.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    (tmp_path / "ask.py").write_text(ASK)  # a file, since vLLM's processes import it
    command = [PYTHON, tmp_path / "ask.py", tmp_path / "small", tmp_path / "found.json", json.dumps(PAIRS)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == pytest.approx(loglikelihoods(model, tokenizer, PAIRS), abs=1e-4)
