"""The memory that a compression takes over the loaded model does not grow with the model's depth."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

PEAK = """
import sys
sys.path[:0] = {path!r}
import torch
from conftest import recipe, tiny_model
from subfit.pipeline import compress_model

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def forget():
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
"""
COMPRESSION = """
def model(layers):
    return tiny_model(num_hidden_layers=layers, hidden_size=192, intermediate_size=512, num_attention_heads=4, head_dim=48)

tokens = torch.randint(3, 101, (64, 256), generator=torch.Generator().manual_seed(0))
compress_model(model(2), tokens[:8], recipe(sparsity=0.5, **{given!r}), batch_size=4)  # what is loaded or grown once
dense = model({layers})
forget()
before = peak()
compress_model(dense, tokens, recipe(sparsity=0.25, **{given!r}), batch_size=4)
print(peak() - before)
"""
TRAINING = """
from subfit.calibration.capture import Calibration
from subfit.finetuning.fine_tune import fine_tune
from subfit.finetuning.settings import FineTuning
from subfit.tracking.loggers import Log
from subfit.pipeline import fit_recipe

size = dict(num_hidden_layers=12, hidden_size=512, intermediate_size=1408, num_attention_heads=8, head_dim=64)
tokens = torch.randint(3, 101, (20, 128), generator=torch.Generator().manual_seed(0))
settings = FineTuning(trainer=dict(max_steps=2, val_check_interval=2), batch_size=4)

def train(model):
    calibration = Calibration(model, tokens)
    switches, _ = fit_recipe(calibration, recipe(sparsity=0.25))
    forget()
    record = fine_tune(calibration, switches, settings, Log())
    assert record["stopped"] is None
    return peak(), record["trained_parameters"] * 4 / 2**20

def run(model):
    given = model.get_input_embeddings()(tokens[:4]).requires_grad_()
    model(inputs_embeds=given, labels=tokens[:4], use_cache=False).loss.backward()

run(tiny_model().requires_grad_(False))
train(tiny_model())  # what is loaded or grown once
forget()
before = peak()
model = tiny_model(**size).requires_grad_(False)
weights = sum(p.numel() * 4 for p in model.parameters()) / 2**20
forget()
run(model)
dense = peak() - before
found, trained = train(model)
print(weights, dense - weights, found - before, trained)
"""
STREAM = 64 * 256 * 192 * 4 / 2**20  # MiB: one residual stream of all tokens in float32


def printed(code: str, **given) -> list[float]:
    """The numbers that a piece of code prints, run in a process of its own."""
    code = PEAK.format(path=sys.path) + (code.format(**given) if given else code)
    # one thread: each has an arena of its own; and tensors go back to the system as soon as they are freed
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_peak_memory_of_the_papers_method_does_not_grow_with_depth():
    depths = (8, 32)
    with ThreadPoolExecutor() as pool:  # each in a process of its own
        found = pool.map(lambda layers: printed(COMPRESSION, layers=layers, given={"fitting": "one_shot"}), depths)
        peaks = {layers: peak for layers, (peak,) in zip(depths, found, strict=True)}
    print(f"peak over the loaded model {peaks} MiB; one stream is {STREAM:.1f} MiB")
    added = 0.1 * 0.25 * 24 * (2 * 192 * 192 + 2 * 192 * 96 + 3 * 192 * 512) * 4 / 2**20  # bypasses of the 24 layers more
    assert peaks[32] < peaks[8] + added + STREAM  # anything kept for each token and layer would be 24 streams more


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_fine_tuning_takes_the_weights_once_and_the_optimisers_state():
    """At most 1.3 times the dense model's weights, the bypasses' state, and a forward and backward pass's activations."""
    weights, activations, peak, trained = printed(TRAINING)
    state = 5 * trained  # master weights, their gradients, two moments of AdamW, the best so far
    print(f"weights {weights:.0f}, activations {activations:.0f}, state {state:.0f}, peak of fine-tuning {peak:.0f} MiB")
    assert activations > 0 and weights < peak < 1.3 * weights + state + activations
