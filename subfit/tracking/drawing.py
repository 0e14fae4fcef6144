"""What all pictures share: sizes, colours, names, and plain numbers on logarithmic axes."""

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

WIDTH = 7.5  # inches: shown 600 pixels wide, a font of 11 points is 12 pixels high
DPI = 160
STYLE: Any = {  # of matplotlib, while a picture is drawn
    "font.size": 11,
    "axes.edgecolor": "0.5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
}
OURS = {"subfit": "#1d4ed8", "best": "#c2410c"}
MUTED = ("#7b8494", "#a08552", "#6f9a79", "#9279ab", "#5d9aa3", "#b07a80", "#4b5563")
GREY = MUTED[0]
DARK = "#374151"
LABEL = 10  # points


def is_ours(name: str) -> bool:
    """Returns whether a label is that of SubFit's own presets or scores, which pictures emphasise."""
    return _own_colour(name) is not None


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Returns the colours of the lines of a picture: strong for our own, muted for others, most often the same."""
    colours: dict[str, str] = {}
    for name in sorted(names, key=lambda name: zlib.crc32(name.encode())):
        free = [colour for colour in MUTED if colour not in colours.values()] or list(MUTED)
        usual = MUTED[zlib.crc32(name.encode()) % len(MUTED)]
        colours[name] = _own_colour(name) or (usual if usual in free else free[0])
    return colours


def emphasis(name: str) -> dict[str, str]:
    """Returns how the name of a method is written where it stands beside its values: our own bold and in colour."""
    return {"color": _own_colour(name) or DARK, "fontweight": "bold" if is_ours(name) else "normal"}


def dot_colour(name: str) -> str:
    """Returns the colour of dots that have their name beside them: strong for our own, grey for others."""
    return _own_colour(name) or GREY


def _own_colour(name: str) -> str | None:
    return OURS.get(re.split(r"\W", name)[0])


def wrapped(name: str, width: int = 22) -> str:
    """Returns a label in lines of at most `width` characters, broken after brackets, commas and spaces where it has any."""
    lines = [""]
    for part in re.findall(rf"[^(, ]{{1,{width - 1}}}[(, ]*|[(, ]+", name):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def plain_logarithms(panel: Any, which: str, limits: tuple[float, float]) -> None:
    """Makes the axis "x" or "y" of a panel logarithmic, with limits, and with ticks such as 1, 1.2, 1.5, 2, 3, 5 and 10."""
    panel.set(**{f"{which}scale": "log", f"{which}lim": limits})
    axis = panel.xaxis if which == "x" else panel.yaxis
    axis.set_major_locator(FixedLocator(_ticks(*limits)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}"))


def _ticks(low: float, high: float) -> list[float]:
    """Plain numbers between two limits, some three to ten."""
    decades = np.log10(high / low)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    wide = (1, 2, 3, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
    near_one = (1, 1.2, 1.5, 2, 3, 5) if decades < 1.2 else (1, 1.5, 2, 3, 5)
    steps = {power: near_one if power == 0 and decades < 1.8 else wide for power in powers}
    found = [step * 10.0**power for power in powers for step in steps[power] if low <= step * 10.0**power <= high]
    if decades < 0.45 or len(found) < 3:
        return [value for value in MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= value <= high]
    return found


def plain_ticks(panel: Any, values: Sequence[float]) -> None:
    """Puts the ticks of the abscissa at these values, on a logarithmic axis if they are far from each other."""
    if values[0] > 0 and values[-1] / values[0] > 4:
        panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def margins(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Returns limits that leave room around positive values on a logarithmic axis."""
    low, high = np.log(min(values)), np.log(max(values))
    room = share * max(high - low, 0.1)
    return float(np.exp(low - room)), float(np.exp(high + room))


def name_rows(panel: Any, names: Sequence[str]) -> None:
    """Makes the ordinate one of names, the first one on top."""
    panel.set_yticks(range(len(names)), [wrapped(name, 34) for name in names], fontsize=LABEL)
    for text, name in zip(panel.get_yticklabels(), names, strict=True):
        text.set(**emphasis(name))
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(axis="y", color="0.93")
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)


def rows_height(names: Sequence[str]) -> float:
    """Returns the height of a panel with these names one below the other, in inches."""
    return 0.55 + sum(0.09 + 0.19 * (1 + wrapped(name, 34).count("\n")) for name in names)
