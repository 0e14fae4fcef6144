"""Pictures of the rows of an ablation by depth: how scorers rank the submodules, and which are replaced."""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from subfit.ablation.effects import names_of_axes
from subfit.ablation.measures import Row, axis_label, label
from subfit.model.submodules import TITLES
from subfit.tracking.drawing import LABEL, STYLE, WIDTH, emphasis, wrapped
from subfit.tracking.plots import kinds_of


@matplotlib.rc_context(STYLE)
def draw_score_ranks(rows: list[Row]) -> Figure:
    """Draws the rank that each scorer gives each submodule within its type: 1 for the safest to replace, 0 for the last."""
    maps = {label(row["values"].get("scorer", row["configuration"]["scorer"])): row["scores"] for row in rows}

    def scale(values: list[float]) -> ArrayLike:
        return 1 - (rankdata(values) - 1) / max(len(values) - 1, 1)

    return _by_depth(maps, "Rank of the score (dark: safest to replace)", scale)


@matplotlib.rc_context(STYLE)
def draw_selections(rows: list[Row], axes: Sequence[str]) -> Figure:
    """Draws in which share of the cells with each value of the axis with the most values each submodule is replaced."""
    (axis, *_) = names_of_axes(rows, axes) or [""]
    maps: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(axis_label(row, axis) if axis else "all" for row in rows):
        own = [row for row in rows if not axis or axis_label(row, axis) == name]
        maps[name] = {site: sum(site in row["selected"] for row in own) / len(own) for site in own[0]["scores"]}
    return _by_depth(maps, "Replaced submodules (dark: in all cells)", np.array)


def _by_depth(maps: dict[str, dict[str, float]], title: str, scale: Callable[[list[float]], ArrayLike]) -> Figure:
    """Each map of submodules to numbers as one line of a heat map over depth, for both types; `scale` to [0, 1]."""
    names = [wrapped(name, 34) for name in maps]
    kinds = kinds_of(site for one in maps.values() for site in one)
    height = 0.45 + len(maps) * (0.1 + 0.16 * max(1 + name.count("\n") for name in names))
    figure = Figure(figsize=(WIDTH, 0.5 + len(kinds) * height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    panels = figure.subplots(len(kinds), sharex=True, squeeze=False)[:, 0]
    for panel, kind in zip(panels, kinds, strict=True):
        lines = [scale([value for name, value in one.items() if name.startswith(f"{kind}.")]) for one in maps.values()]
        panel.imshow(np.array(lines), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(TITLES[kind], x=0, fontsize=11)
        panel.set_yticks(range(len(maps)), names, fontsize=LABEL)
        panel.set_yticks(np.arange(len(maps) - 1) + 0.5, minor=True)
        panel.grid(axis="y", which="minor", color="white", linewidth=2)
        panel.tick_params(axis="y", which="both", length=0)
        panel.spines[:].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        for text, name in zip(panel.get_yticklabels(), maps, strict=True):
            text.set(**emphasis(name))
    panels[-1].set_xlabel("layer")
    return figure
