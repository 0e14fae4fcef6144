"""Lines on a logarithmic axis, with labels at their ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from subfit.tracking.drawing import LABEL, WIDTH, colours_of, is_ours, margins, plain_logarithms, wrapped

CHARACTER = 0.62 * LABEL / 72  # inches: the mean width of one
STEEP = 12  # times the lowest value: where a line that goes higher leaves the picture


@dataclass(frozen=True)
class Line:
    """A line of a picture.

    Attributes:
        name: its label.
        x, y: its points, from left to right.
        low, high: interval of each point; none if empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def draw_lines(lines: Sequence[Line], title: str, across: str, up: str) -> tuple[Figure, Any]:
    """Returns a figure of lines on a logarithmic ordinate, with their labels at their ends, and its panel."""
    top = min(max(max(line.y) for line in lines), STEEP * min(min(line.y) for line in lines))
    labels = [wrapped(line.name + (f" ↑ {line.y[-1]:,.0f}" if line.y[-1] > top else "")) for line in lines]
    figure = Figure(figsize=(WIDTH, 4.6))
    right = 1 - (0.35 + CHARACTER * max(len(part) for text in labels for part in text.split("\n"))) / WIDTH
    figure.subplots_adjust(left=0.125, right=right, top=0.91, bottom=0.13)
    panel = figure.subplots()
    colours = colours_of([line.name for line in lines])
    for line in sorted(lines, key=lambda line: is_ours(line.name)):  # ours on top
        ours, colour = is_ours(line.name), colours[line.name]
        panel.plot(line.x, line.y, "o-", color=colour, linewidth=2.6 if ours else 1.5, markersize=6 if ours else 4.5)
        if ours and line.low:
            panel.fill_between(line.x, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
    bands = [value for line in lines if is_ours(line.name) for value in (*line.low, *line.high)]
    plain_logarithms(panel, "y", margins([min(value, top) for line in lines for value in line.y] + bands))
    panel.set_title(title, x=0)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(axis="y", color="0.92")
    panel.set_axisbelow(True)
    panel.set_xlim(panel.get_xlim())
    _label_ends(panel, lines, labels, top)
    return figure, panel


def _label_ends(panel: Any, lines: Sequence[Line], labels: list[str], top: float) -> None:
    """Writes each label beside the last point of its line, moved up or down so that none overlaps another."""
    colours = colours_of([line.name for line in lines])
    points = [(line.x[-1], min(line.y[-1], top)) for line in lines]
    ends = [panel.transAxes.inverted().transform(panel.transData.transform(point))[1] for point in points]
    sizes = [1.25 * (text.count("\n") + 1) * LABEL * panel.figure.dpi / 72 / panel.bbox.height for text in labels]
    leader = {"arrowstyle": "-", "linewidth": 0.7, "alpha": 0.6, "shrinkB": 3}
    for line, text, point, place in zip(lines, labels, points, spread(ends, sizes), strict=True):
        panel.annotate(
            text,
            point,
            (1.045, place),
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL,
            fontweight="bold" if is_ours(line.name) else "normal",
            color=colours[line.name],
            arrowprops=None if line.y[-1] > top else leader | {"color": colours[line.name]},
            annotation_clip=False,
        )


def spread(places: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Returns places near the given ones, in their order, at which labels of these sizes do not overlap; within [0, 1] if
    they fit there."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    edge = 0.0
    for index in order:
        moved[index] = max(moved[index], edge + sizes[index] / 2)
        edge = moved[index] + sizes[index] / 2
    edge = max(1.0, sum(sizes))
    for index in reversed(order):
        moved[index] = min(moved[index], edge - sizes[index] / 2)
        edge = moved[index] - sizes[index] / 2
    return moved
