"""Pictures: the score of every submodule by depth and type, and the speed of a compressed model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from subfit.model.submodules import KINDS, TITLES
from subfit.tracking.drawing import DARK, DPI, LABEL, OURS, STYLE, WIDTH, margins, plain_logarithms

KEPT = "#c3c9d2"


@matplotlib.rc_context(STYLE)
def draw_scores(record: dict[str, Any], path: Path) -> None:
    """Writes the picture of `record["scores"]` and `record["selected"]` to an image file."""
    kinds = kinds_of(record["scores"])
    figure = Figure(figsize=(WIDTH, 2.6 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), sharex=True, squeeze=False)[:, 0]
    selected = set(record["selected"])
    for panel, kind in zip(panels, kinds, strict=True):
        scores = {name: score for name, score in record["scores"].items() if name.startswith(f"{kind}.")}
        colours = [OURS["subfit"] if name in selected else KEPT for name in scores]
        panel.bar([int(name.split(".")[1]) for name in scores], list(scores.values()), color=colours)
        if scores and min(scores.values()) > 0:
            low, high = margins(list(scores.values()), 0.1)
            plain_logarithms(panel, "y", (low, high))
        replaced = sum(name in selected for name in scores)
        panel.set_title(f"{TITLES[kind]}: {replaced} of {len(scores)} replaced (blue)", x=0)
        panel.set_ylabel("score (↓ safer to replace)", fontsize=LABEL)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("layer")
    figure.savefig(path, dpi=DPI)


def kinds_of(sites: Iterable[str]) -> list[str]:
    """Returns the types of some submodules, given by name, in their usual order."""
    found = {name.partition(".")[0] for name in sites}
    return [kind for kind in KINDS if kind in found]


@matplotlib.rc_context(STYLE)
def draw_speed(result: dict[str, Any], path: Path) -> None:
    """Writes the picture of the speed-ups in what `subfit.benchmark` returns, beside the ideal ones, to an image file."""
    named = [(f"read a prompt of {entry['prompt_length']:,} tokens", entry["speedup"]) for entry in result["prefill"]]
    for entry in result["decoding"]:
        many = f" x {entry['batch_size']}" if entry["batch_size"] > 1 else ""
        named.append((f"decode{many} after {entry['context']:,} tokens", entry["speedup"]))
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(named)), layout="constrained")
    panel = figure.subplots()
    for place, (_, speed) in enumerate(named):
        panel.plot(speed["quartiles"], [place, place], color=OURS["subfit"], linewidth=3, alpha=0.35)
        panel.plot(
            speed["measured"],
            place,
            "o",
            color=OURS["subfit"],
            markersize=8,
            label=None if place else "measured (bar: quartiles)",
        )
        panel.plot(speed["ideal"], place, "|", color=DARK, markersize=16, markeredgewidth=2.5,
                   label=None if place else "ideal for what is removed")  # fmt: skip
        panel.annotate(f"{speed['measured']:.2f}", (speed["measured"], place), (0, 8), textcoords="offset points",
                       ha="center", fontsize=LABEL, color=OURS["subfit"])  # fmt: skip
    panel.axvline(1, color=DARK, linewidth=1)
    panel.annotate("dense", (1, len(named) - 0.6), (4, 0), textcoords="offset points", fontsize=LABEL, color=DARK)
    panel.set_yticks(range(len(named)), [name for name, _ in named])
    panel.set_ylim(len(named) - 0.4, -0.7)
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("times as fast as the dense model (more is better →)")
    low, high = (bound(speed["measured"] for _, speed in named) for bound in (min, max))
    panel.set_title(f"{low:.2f} to {high:.2f} times as fast as the dense model", x=0, pad=26)
    panel.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, frameon=False, fontsize=LABEL)
    figure.savefig(path, dpi=DPI)
