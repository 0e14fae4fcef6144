"""What a compression costs: its time beside a forward pass over the same tokens, and its memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from subfit.benchmarking.timing import seconds_of
from subfit.benchmarking.workload import Workload
from subfit.calibration.capture import Calibration
from subfit.config import Recipe
from subfit.model.finalizing import check_replaceable
from subfit.model.replacing import turn_off
from subfit.model.sizes import peak_bytes, weight_bytes
from subfit.pipeline import fit_recipe
from subfit.progress import Stage


def compression_costs(model: Any, recipe: Recipe, workload: Workload) -> list[dict[str, Any]]:
    """Returns what it costs to compress a dense model, see `compression_cost`, with each number of calibration windows."""
    generator = torch.Generator().manual_seed(workload.seed)
    most, vocabulary = max(workload.calibration_windows, default=0), len(model.get_input_embeddings().weight)
    tokens = torch.randint(vocabulary, (most, workload.calibration_length), generator=generator)
    found = []
    for count in workload.calibration_windows:
        with Stage(f"compressing with {count} windows"):
            found.append(compression_cost(model, tokens[:count], recipe))
    return found


def compression_cost(model: Any, tokens: Tensor, recipe: Recipe, batch_size: int = 8) -> dict[str, Any]:
    """Compresses a dense model twice, once for the time and once for the memory; it is dense again afterwards.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokens: (windows, length), calibration tokens.
        recipe: how it is compressed.
        batch_size: windows run at once.

    Returns:
        Plain data: `windows` and `length`; `seconds` of `score`, `select`, `fit` and of a plain `forward` pass over the same
        tokens, without the head; `forwards`, how many of these the compression takes; and `peak_bytes`, the most memory that
        it takes over the weights.

    Raises:
        SubFitError: if the model is not supported, or there are too few tokens.
    """
    check_replaceable(model)
    stages: dict[str, float] = {}

    def compress() -> None:
        switches, record = fit_recipe(Calibration(model, tokens, batch_size), recipe)
        turn_off(switches)
        stages.update(record["seconds"])

    device = next(model.parameters()).device
    forward = _forward(model, tokens.to(device), batch_size)
    forward(1)  # warm-up
    seconds = {"forward": seconds_of(partial(forward, len(tokens)), device)}
    whole = seconds_of(compress, device)
    seconds |= stages
    return {
        "windows": len(tokens),
        "length": tokens.shape[1],
        "seconds": seconds,
        "forwards": whole / seconds["forward"],
        "peak_bytes": peak_bytes(model, compress) - weight_bytes(model),
    }


def _forward(model: Any, tokens: Tensor, batch_size: int) -> Callable[[int], None]:
    """What runs the model, without its head, over so many windows."""

    @torch.inference_mode()
    def run(windows: int) -> None:
        for batch in tokens[:windows].split(batch_size):
            model.base_model(batch, use_cache=False)

    return run
