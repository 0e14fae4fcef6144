"""Times two models in turns, so that disturbances of the machine affect both equally."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any

import torch

from subfit.progress import Stage

Seconds = dict[str, list[float]]


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds that `run` takes; on a GPU, between two events on its stream."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def interleave(measures: Mapping[str, Callable[[], float]], repeats: int, warmup: int, label: str = "timing") -> Seconds:
    """Takes measurements in turns, every other time in reverse order, so that a drift of the machine cancels.

    Args:
        measures: functions that return seconds, by name.
        repeats: times that each is taken.
        warmup: times that each is taken before, and forgotten.
        label: what the stage is called, see `subfit.progress`.

    Returns:
        The seconds of each, by name, in the order they were taken.
    """
    seconds: Seconds = {name: [] for name in measures}
    with Stage(label, warmup + repeats, "turns") as progress:
        for turn in range(-warmup, repeats):
            for name in sorted(measures, reverse=turn % 2 == 1):
                took = measures[name]()
                if turn >= 0:
                    seconds[name].append(took)
            progress.advance()
    return seconds


def medians(seconds: Seconds) -> dict[str, float]:
    """Returns the median of the seconds of each measurement, by name."""
    return {name: median(values) for name, values in seconds.items()}


def speed_up(seconds: Seconds, ideal: float) -> dict[str, Any]:
    """Returns how much faster the compressed model is than the dense one, beside how much it could be.

    Args:
        seconds: of `dense` and `compressed`, taken in turns.
        ideal: what the dense model costs over what the compressed one costs.

    Returns:
        `measured`: the median over the turns of dense over compressed seconds; `quartiles`: the first and the third of
        these ratios; `ideal`; `reached`: measured / ideal; `saved`: the share of the time that the ideal would save which
        was saved, (1 - 1 / measured) / (1 - 1 / ideal), None where it would save nothing.
    """
    ratios = [d / c for d, c in zip(seconds["dense"], seconds["compressed"], strict=True)]
    measured = median(ratios)
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (measured,) * 3
    saved = (1 - 1 / measured) / (1 - 1 / ideal) if ideal > 1 else None
    return {"measured": measured, "quartiles": [low, high], "ideal": ideal, "reached": measured / ideal, "saved": saved}
