"""The memory that a compression takes over the loaded model does not grow with the model's depth."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

CODE = """
import sys
sys.path[:0] = {path!r}
import torch
from conftest import recipe, tiny_model
from subfit.pipeline import compress_model

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def model(layers):
    return tiny_model(num_hidden_layers=layers, hidden_size=192, intermediate_size=512, num_attention_heads=4, head_dim=48)

tokens = torch.randint(3, 101, (64, 256), generator=torch.Generator().manual_seed(0))
compress_model(model(2), tokens[:8], recipe(sparsity=0.5, **{given!r}), batch_size=4)  # what is loaded or grown once
dense = model({layers})
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = peak()
compress_model(dense, tokens, recipe(sparsity=0.25, **{given!r}), batch_size=4)
print(peak() - before)
"""
STREAM = 64 * 256 * 192 * 4 / 2**20  # MiB: one residual stream of all tokens in float32


def peak_over_model(layers: int, given: dict) -> float:
    code = textwrap.dedent(CODE).format(path=sys.path, layers=layers, given=given)
    # one thread: each has an arena of its own; and tensors go back to the system as soon as they are freed
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_peak_memory_of_the_papers_method_does_not_grow_with_depth():
    depths = (8, 16, 32)
    with ThreadPoolExecutor() as pool:  # each in a process of its own
        found = list(pool.map(lambda layers: peak_over_model(layers, {"fitting": "one_shot"}), depths))
    peaks = dict(zip(depths, found, strict=True))
    print(f"peak over the loaded model {peaks} MiB; one stream is {STREAM:.1f} MiB")
    added = 0.1 * 0.25 * 24 * (2 * 192 * 192 + 2 * 192 * 96 + 3 * 192 * 512) * 4 / 2**20  # bypasses of the 24 layers more
    assert peaks[32] < peaks[8] + added + STREAM  # anything kept for each token and layer would be 24 streams more
