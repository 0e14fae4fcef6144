"""Tables on stdout, as wide as they need to be; lines where a terminal is too narrow. Nothing is cut."""

import os
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNLIMITED = 10_000  # columns of what is no terminal

Row = Sequence[str | Text]


def show_table(title: str, columns: Sequence[str], rows: Sequence[Row], *, names: int = 1, note: str = "") -> None:
    """Prints a table on stdout, with an empty line after it; see `fit_table`.

    Args:
        note: a line below it, such as which values are better.
    """
    console = stdout()
    console.print(fit_table(title, columns, rows, console, names=names))
    print(f"{note}\n" if note else "")


def fit_table(
    title: str, columns: Sequence[str], rows: Sequence[Row], console: Console, *, names: int = 1
) -> RenderableType:
    """Returns a table, or, if the console is too narrow for it, a line for each value.

    Args:
        columns: their headings.
        rows: a cell for each column; empty where there is nothing to say.
        names: number of leading columns that name a row; the others hold numbers.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(columns):
        table.add_column(Text(heading), justify="left" if index < names else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))  # else brackets are markup
    fits = Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum <= console.width
    above = Text(title, style="bold", overflow="fold")
    return Group(above, table) if fits else Group(above, *_records(columns, rows, names))


def _records(columns: Sequence[str], rows: Sequence[Row], names: int) -> list[Text]:
    """The rows, one below the other: what names each, and a line for each of its values."""
    lines = []
    for row in rows:
        cells = list(zip(columns, row, strict=True))
        lines.append(Text(", ").join(_named(heading, cell) for heading, cell in cells[:names] if cell))
        lines += [Text("  ").append(_named(heading, cell)) for heading, cell in cells[names:] if cell]
    for line in lines:
        line.overflow = "fold"
    return lines


def _named(heading: str, cell: str | Text) -> Text:
    text = Text(f"{heading}: " if heading else "")
    return text.append(cell) if isinstance(cell, str) else text.append_text(cell)


def stdout() -> Console:
    """Returns the console of stdout; a file or a pipe is as wide as the environment's COLUMNS says, or without a limit."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNLIMITED
    return console
