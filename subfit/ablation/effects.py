"""Pictures of the rows of an ablation as dots: the perplexity ratio by the values of each axis."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from subfit.ablation.measures import Row, axis_label, is_numeric, retained_interval, varying
from subfit.tracking.drawing import DARK, LABEL, STYLE, WIDTH, dot_colour, margins, name_rows, plain_logarithms, rows_height

MARKERS = ("o", "D", "s", "^", "v", "P", "X", "<", ">", "h")  # of the values of a second axis, or of the texts
CLIPPED = 50  # times the lowest ratio: what is above is written at the edge
LOST = "perplexity ratio to the dense model (← lower is better)"

Point = tuple[float, Sequence[float] | None]  # a ratio and its interval
Panel = dict[str, dict[str, list[Point]]]  # by the value of an axis, and by the second axis or the text


def names_of_axes(rows: list[Row], axes: Sequence[str]) -> list[str]:
    """Returns the axes along which rows differ that are not numeric, the one with the most values first."""
    found = [axis for axis in varying(rows, axes) if not is_numeric(rows, axis)]
    return sorted(found, key=lambda axis: -len({axis_label(row, axis) for row in rows}))


@matplotlib.rc_context(STYLE)
def draw_effects(rows: list[Row], axes: Sequence[str]) -> Figure:
    """Draws the perplexity ratio by the values of each axis that is not numeric, the lowest first.

    The marker tells the second axis; or, where rows differ in one axis only, the text. Where several cells have the same
    values, small dots are cells and the large one is their geometric mean.
    """
    names = names_of_axes(rows, axes)
    panels = [
        _panel(rows, names[0], names[1] if len(names) > 1 else None),
        *(_panel(rows, axis, None) for axis in names[2:]),
    ]
    heights = [rows_height(list(panel)) for panel in panels]
    legends = [_legend_columns(_series(data)) for data in panels]
    above = [
        0.2 * -(-len(_series(data)) // columns) if columns else 0 for data, columns in zip(panels, legends, strict=True)
    ]
    figure = Figure(figsize=(WIDTH, 0.75 + sum(heights) + sum(above)), layout="constrained")
    drawn = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel, data, columns, room in zip([names[0], *names[2:]], drawn, panels, legends, above, strict=True):
        _draw_panel(panel, data)
        if columns:
            shapes = [
                Line2D([], [], marker=MARKERS[i % len(MARKERS)], linestyle="", color=DARK) for i in range(len(_series(data)))
            ]
            place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "frameon": False, "borderaxespad": 0.2}
            panel.legend(shapes, _series(data), ncols=columns, fontsize=LABEL, **place)
        panel.set_title(f"Quality by {axis.replace('_', ' ')}", x=0, pad=8 + 72 * room)
    drawn[-1].set_xlabel(LOST)
    return figure


def _legend_columns(series: list[str]) -> int:
    """In how many columns the names of the markers fit; 0 if there is nothing to tell apart."""
    if series == [""]:
        return 0
    return len(series) if sum(len(name) + 6 for name in series) < 75 else 1


def _panel(rows: list[Row], axis: str, by: str | None) -> Panel:
    """The points of an axis, those with the lowest mean first."""
    panel: Panel = {}
    by_text = by is None and len({axis_label(row, axis) for row in rows}) == len(rows)
    for row in rows:
        texts = row["texts"] if by_text else dict(list(row["texts"].items())[:1])
        for text, measured in texts.items():
            series = axis_label(row, by) if by else f"{text} text" if len(texts) > 1 else ""
            point = measured["perplexity_ratio"], measured.get("perplexity_ratio_interval")
            panel.setdefault(axis_label(row, axis), {}).setdefault(series, []).append(point)
    return dict(sorted(panel.items(), key=lambda item: min(map(_mean, item[1].values()))))


def _mean(points: list[Point]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(value) for value, _ in points) / len(points))


def _series(panel: Panel) -> list[str]:
    return list(dict.fromkeys(name for values in panel.values() for name in values))


def _draw_panel(panel: Any, data: Panel) -> None:
    series = _series(data)
    lowest = min(value for values in data.values() for points in values.values() for value, _ in points)
    limit = CLIPPED * lowest
    shown = [lowest]
    for place, (name, values) in enumerate(data.items()):
        beyond = [_mean(points) for points in values.values() if _mean(points) > limit]
        if beyond:
            _write_beyond(panel, place, "; ".join(f"{value:,.0f}" if value < 1e6 else f"{value:.1e}" for value in beyond))
        for index, one in enumerate(series):
            if one in values and _mean(values[one]) <= limit:
                height = place + 0.2 * (index - (len(series) - 1) / 2)
                found = _draw_points(panel, values[one], height, dot_colour(name), MARKERS[index % len(MARKERS)])
                shown += [value for value in found if value <= limit]
    plain_logarithms(panel, "x", margins(shown))
    name_rows(panel, list(data))


def _write_beyond(panel: Any, place: int, text: str) -> None:
    """Writes the values that are too large for the picture at its edge."""
    edge = panel.get_yaxis_transform()
    panel.annotate(f"{text} →", (1, place), xycoords=edge, ha="right", va="center", fontsize=LABEL - 1, color=DARK)


def _draw_points(panel: Any, points: list[Point], height: float, colour: str, marker: str) -> list[float]:
    """Draws one value of an axis, its mean and its cells, or the one cell and its interval; returns what is to be seen."""
    mean = _mean(points)
    panel.plot(mean, height, marker, color=colour, markersize=6)
    if len(points) > 1:
        panel.plot([value for value, _ in points], [height] * len(points), ".", color=colour, alpha=0.45, markersize=4)
        return [mean, *(value for value, _ in points)]
    interval = points[0][1] or ()
    panel.plot(interval, [height] * len(interval), color=colour, alpha=0.45, linewidth=2)
    return [mean, *interval]


@matplotlib.rc_context(STYLE)
def draw_accuracy(rows: list[Row], axes: Sequence[str]) -> Figure:
    """Draws the zero-shot accuracy that is retained, by the values of the axis with the most values, the highest first."""
    axis = names_of_axes(rows, axes)[0]
    retained: dict[str, list[Row]] = {}
    for row in rows:
        retained.setdefault(axis_label(row, axis), []).append(row["tasks_mean"])
    means = {name: sum(one["retained"] for one in found) / len(found) for name, found in retained.items()}
    names = sorted(means, key=lambda name: -means[name])
    figure = Figure(figsize=(WIDTH, 0.75 + rows_height(names)), layout="constrained")
    panel = figure.subplots()
    for place, name in enumerate(names):
        panel.plot(100 * means[name], place, "o", color=dot_colour(name), markersize=6)
        if len(retained[name]) > 1:
            cells = [100 * one["retained"] for one in retained[name]]
            panel.plot(cells, [place] * len(cells), ".", color=dot_colour(name), alpha=0.45, markersize=4)
        elif interval := retained_interval(retained[name][0]):
            bounds = [100 * end for end in interval]
            panel.plot(bounds, [place, place], color=dot_colour(name), alpha=0.45, linewidth=2)
    name_rows(panel, names)
    panel.set_title(f"Zero-shot accuracy by {axis.replace('_', ' ')}", x=0)
    panel.set_xlabel("accuracy retained, % of the dense model's (more is better →)")
    return figure
