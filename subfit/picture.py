"""The picture of a compression: the score of every site by depth and type, with the replaced ones marked."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from subfit.sites import KINDS

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
