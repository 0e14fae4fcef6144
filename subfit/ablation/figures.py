"""Pictures of the rows of an ablation as lines: quality for what is removed, along a numeric axis, and in fine-tuning."""

import math
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from subfit.ablation.measures import Row, cache_left, grouped, is_numeric, net_parameters, varying
from subfit.tracking.drawing import STYLE, is_ours, plain_ticks
from subfit.tracking.lines import Line, draw_lines

LINES = 7  # in one picture; the rest is in the table


def line_axis(rows: list[Row], axes: Sequence[str]) -> str | None:
    """Returns the first numeric axis, along which points are joined by lines; None if there is none."""
    return next((axis for axis in varying(rows, axes) if is_numeric(rows, axis)), None)


@matplotlib.rc_context(STYLE)
def draw_tradeoff(rows: list[Row], axes: Sequence[str], text: str) -> Figure:
    """Draws the perplexity ratio on a text against the parameters removed."""
    lines = _lines(rows, axes, text, lambda row: net_parameters(row) / 1e6)
    across = "parameters removed, net, in millions (more is better →)"
    return draw_lines(lines, _title("Quality lost for parameters removed", rows, axes), across, _lost(text))[0]


@matplotlib.rc_context(STYLE)
def draw_cache(rows: list[Row], axes: Sequence[str], text: str) -> Figure:
    """Draws the perplexity ratio on a text against the share of the key-value cache that is no longer needed."""
    lines = _lines(rows, axes, text, lambda row: 100 * (1 - cache_left(row)))
    across = "key-value cache saved, % (more is better →)"
    return draw_lines(lines, _title("Quality lost for key-value cache saved", rows, axes), across, _lost(text))[0]


@matplotlib.rc_context(STYLE)
def draw_trend(rows: list[Row], axes: Sequence[str], text: str) -> Figure:
    """Draws the perplexity ratio on a text along the first numeric axis."""
    axis = line_axis(rows, axes)
    lines = _lines(rows, axes, text, lambda row: row["values"][axis])
    figure, panel = draw_lines(lines, _title(f"Quality by {axis}", rows, axes), str(axis), _lost(text))
    plain_ticks(panel, sorted({value for line in lines for value in line.x}))
    return figure


@matplotlib.rc_context(STYLE)
def draw_curves(rows: list[Row], axes: Sequence[str]) -> Figure:
    """Draws the perplexity ratio on the held-out windows over the tokens of each fine-tuning.

    It is drawn over the steps where a row does not have the tokens, as rows of earlier versions.
    """
    known = all("tokens" in point for row in rows for point in row["finetune"]["curve"])
    lines = []
    for name, (row, *_) in grouped(rows, varying(rows, axes)).items():
        curve = row["finetune"]["curve"]
        across = [point["tokens"] / 1000 if known else point["step"] for point in curve]
        lines.append(Line(name or "all", across, [point["ratio"] for point in curve]))
    lines = sorted(lines, key=lambda line: line.y[-1])[:LINES]
    unit = "tokens trained on, in thousands" if known else "step"
    up = "perplexity ratio, held-out windows\n(lower is better ↓)"
    figure, panel = draw_lines(lines, "Fine-tuning, from the closed-form fit on", unit, up)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _lost(text: str) -> str:
    return f"perplexity ratio, {text} text\n(lower is better ↓)"


def _lines(rows: list[Row], axes: Sequence[str], text: str, across: Callable[[Row], float]) -> list[Line]:
    """The lines of the groups that lose the least, ours among them in any case."""
    joined = line_axis(rows, axes)
    lines = []
    for name, group in grouped(rows, [axis for axis in varying(rows, axes) if axis != joined]).items():
        group = sorted((row for row in group if text in row["texts"]), key=across)
        if group:
            found = [row["texts"][text] for row in group]
            ends = [measured.get("perplexity_ratio_interval") for measured in found]
            low, high = zip(*ends, strict=True) if all(ends) else ((), ())
            points = [across(row) for row in group], [measured["perplexity_ratio"] for measured in found]
            lines.append(Line(name or "all", *points, low, high))
    loss = {line.name: sum(map(math.log, line.y)) / len(line.y) for line in lines}
    return sorted(lines, key=lambda line: (not is_ours(line.name), loss[line.name]))[:LINES]


def _title(text: str, rows: list[Row], axes: Sequence[str]) -> str:
    joined = line_axis(rows, axes)
    groups = len(grouped(rows, [axis for axis in varying(rows, axes) if axis != joined]))
    return text if groups <= LINES else f"{text}: {LINES} of {groups}"
