"""Pictures of the rows of an ablation: trade-offs, scores and selections by depth, effects of axes and of fine-tuning."""

import json
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from scipy.stats import rankdata

from subfit.model.submodules import KINDS
from subfit.tracking.plots import TITLES

Row = dict[str, Any]
WIDTH = 10.0  # inches


def ratio(row: Row) -> float:
    """Returns a row's perplexity ratio on the first text that it was evaluated on."""
    return next(iter(row["texts"].values()))["perplexity_ratio"]


def net_parameters(row: Row) -> int:
    """Returns how many parameters left the model, bypasses deducted."""
    return row["size"]["before"]["parameters"] - row["size"]["after"]["parameters"]


def net_kv_bytes(row: Row) -> int:
    """Returns how many bytes of key-value cache a token needs less."""
    return row["size"]["before"]["kv_bytes_per_token"] - row["size"]["after"]["kv_bytes_per_token"]


def label(value: Any) -> str:
    """Returns a value of an axis in short: a strategy as its name and arguments."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = ", ".join(f"{key}={label(item)}" for key, item in value.get("init_args", {}).items())
        return f"{value['class_path']}({arguments})" if arguments else value["class_path"]
    if isinstance(value, list):
        return "[" + ", ".join(map(label, value)) + "]"
    return str(value) if isinstance(value, str) else json.dumps(value)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points (saved, cost) that no other saves as much as at a lower cost, by what they save."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front[::-1]


def draw_tradeoff(rows: list[Row], axis: str | None) -> Figure:
    """Draws perplexity ratio against what was saved, parameters and key-value cache, coloured by the values of an axis."""
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    groups = list(dict.fromkeys(label(row["values"].get(axis)) if axis else "" for row in rows))
    colours = matplotlib.colormaps["tab20"]
    measures = (
        (net_parameters, 1e6, "net parameters taken out, millions"),
        (net_kv_bytes, 1, "KV bytes per token taken out"),
    )
    for panel, (saved, unit, title) in zip(panels, measures, strict=True):
        points = [(saved(row) / unit, ratio(row)) for row in rows]
        for number, group in enumerate(groups):
            own = [p for p, row in zip(points, rows, strict=True) if not axis or label(row["values"].get(axis)) == group]
            panel.scatter(*zip(*own, strict=True), s=24, color=colours(number % 20), label=group)
        front = [points[index] for index in pareto_front(points)]
        panel.step(*zip(*front, strict=True), where="pre", color="0.4", linewidth=1, zorder=0)
        panel.set_xlabel(title)
        panel.set_yscale("log")
        _plain_numbers(panel.yaxis)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("perplexity ratio (lower: better)")
    if axis:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", frameon=False, fontsize=7, title=axis)
    return figure


def draw_score_ranks(rows: list[Row]) -> Figure:
    """Draws the rank that each scorer gives each site within its type: 1 for the safest to replace, 0 for the last."""
    maps = {label(row["configuration"]["scorer"]): row["scores"] for row in rows}
    return _by_depth(maps, "safest to replace: 1", lambda values: 1 - (rankdata(values) - 1) / max(len(values) - 1, 1))


def draw_selections(rows: list[Row]) -> Figure:
    """Draws in which share of its cells each scorer's selection has each site."""
    maps: dict[str, dict[str, float]] = {}
    for scorer in dict.fromkeys(label(row["configuration"]["scorer"]) for row in rows):
        own = [row for row in rows if label(row["configuration"]["scorer"]) == scorer]
        maps[scorer] = {name: sum(name in row["selected"] for row in own) / len(own) for name in own[0]["scores"]}
    return _by_depth(maps, "share of cells", np.array)


def draw_effects(rows: list[Row], axes: list[str]) -> Figure:
    """Draws each axis' values against the perplexity ratio: a dot for each cell, the geometric mean and spread in bold."""
    figure = Figure(figsize=(WIDTH, 0.6 + sum(0.5 + 0.24 * len(_values(rows, axis)) for axis in axes)), layout="constrained")
    heights = [len(_values(rows, axis)) + 1 for axis in axes]
    panels = figure.subplots(len(axes), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        values = _values(rows, axis)
        for place, value in enumerate(values):
            logs = np.log([ratio(row) for row in rows if label(row["values"].get(axis)) == value])
            panel.scatter(np.exp(logs), np.full(len(logs), place), s=12, color="#30638e", alpha=0.4)
            bounds = np.exp([logs.mean() - logs.std(), logs.mean() + logs.std()])
            panel.plot(bounds, [place, place], color="#d1495b")
            panel.plot(np.exp(logs.mean()), place, "D", color="#d1495b", markersize=6)
        panel.set_yticks(range(len(values)), values, fontsize=7)
        panel.set_ylim(len(values) - 0.5, -0.5)
        panel.set_title(axis, loc="left", fontsize=9)
        panel.set_xscale("log")
        _plain_numbers(panel.xaxis)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("perplexity ratio (lower: better)")
    return figure


def draw_curves(rows: list[Row]) -> Figure:
    """Draws the perplexity ratio on the held-out calibration windows over the steps of each fine-tuning."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    panel = figure.subplots()
    for row in rows:
        curve = row["finetune"]["curve"]
        name = ", ".join(f"{axis}: {label(value)}" for axis, value in row["values"].items())
        panel.plot([point["step"] for point in curve], [point["ratio"] for point in curve], ".-", label=name)
    panel.set_xlabel("step")
    panel.set_ylabel("perplexity ratio, held-out windows")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=7)
    return figure


def _plain_numbers(axis: Any) -> None:
    """Labels an axis of logarithms with 1.5 rather than with a product of a power of ten."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2.5, 0.4)))


def _values(rows: list[Row], axis: str) -> list[str]:
    return list(dict.fromkeys(label(row["values"].get(axis)) for row in rows))


def _by_depth(maps: dict[str, dict[str, float]], title: str, scale: Any) -> Figure:
    """Each map of site names to numbers as one line of a heat map over depth, for both types; `scale` to [0, 1]."""
    figure = Figure(figsize=(WIDTH, max(2.6, 1 + 0.4 * len(maps))), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for panel, kind in zip(panels, KINDS, strict=True):
        lines = [scale([value for name, value in one.items() if name.startswith(f"{kind}.")]) for one in maps.values()]
        image = panel.imshow(np.array(lines), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(TITLES[kind], loc="left", fontsize=9)
        panel.set_xlabel("layer")
    panels[0].set_yticks(range(len(maps)), list(maps), fontsize=7)
    figure.colorbar(image, ax=panels, label=title)
    return figure
