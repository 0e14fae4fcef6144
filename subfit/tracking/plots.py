"""Pictures: the score of every site by depth and type, and the speed of a compressed model."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from subfit.model.submodules import KINDS

TITLES = {"attention": "Attention", "ffn": "FeedForward"}


def draw_scores(record: dict[str, Any], path: Path) -> None:
    """Writes the picture of `record["scores"]` and `record["selected"]` to an image file."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(len(KINDS), sharex=True)
    selected = set(record["selected"])
    for axis, kind in zip(axes, KINDS, strict=True):
        scores = {name: score for name, score in record["scores"].items() if name.startswith(f"{kind}.")}
        for label, colour, marked in (("replaced", "#d1495b", True), ("kept", "#30638e", False)):
            bars = {int(name.split(".")[1]): s for name, s in scores.items() if (name in selected) == marked}
            axis.bar(list(bars), list(bars.values()), color=colour, label=f"{label} ({len(bars)})")
        if all(score > 0 for score in scores.values()):
            axis.set_yscale("log")
        axis.set_title(TITLES[kind], loc="left")
        axis.set_ylabel("score (lower: safer)")
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("layer")
    figure.savefig(path, dpi=120)


def draw_speed(result: dict[str, Any], path: Path) -> None:
    """Writes the picture of the speed-ups in what `subfit.benchmark` returns, beside the ideal ones, to an image file."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    prefill, decoding = result["prefill"], result["decoding"]
    panels = [
        ("prefill, by tokens of the prompt", [str(entry["prompt_length"]) for entry in prefill], prefill),
        ("decoding, by batch x context", [f"{entry['batch_size']} x {entry['context']}" for entry in decoding], decoding),
    ]
    panels = [panel for panel in panels if panel[2]]
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, names, entries) in zip(axes, panels, strict=True):
        for i, speed in enumerate(entry["speedup"] for entry in entries):
            low, high = speed["quartiles"]
            axis.bar(i, speed["measured"], 0.6, color="#30638e", label=None if i else "measured, with quartiles")
            axis.vlines(i, low, high, color="black")
            axis.hlines(speed["ideal"], i - 0.4, i + 0.4, color="#d1495b", label=None if i else "what is saved allows")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(names)), names)
        axis.set_title(title, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower left", frameon=True)
    axes[0].set_ylabel("times as fast as dense")
    figure.savefig(path, dpi=120)
