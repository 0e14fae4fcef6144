"""What `subfit evaluate` shows of the models' continuations of prompts."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from subfit.cli.tables import stdout

WIDEST = 120  # columns, beyond which a text is hard to read


def show_generations(entries: list[dict[str, Any]]) -> None:
    """Prints a row for each prompt, with the continuations side by side, folded to the width of the terminal."""
    compared = "reference_text" in entries[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_lines=True)
    for heading in ("prompt", *(["reference", "model", "equal first tokens"] if compared else ["model"])):
        table.add_column(heading, overflow="fold", width=12 if heading.startswith("equal") else None)
    for entry in entries:
        texts = [entry["prompt"], *([entry["reference_text"]] if compared else []), entry["text"]]
        equal = [f"{entry['equal_tokens']} of {entry['reference_tokens']}"] if compared else []
        table.add_row(*(Text(_on_one_line(text)) for text in texts), *equal)
    console = stdout()
    console.width = min(console.width, WIDEST)
    console.print(Text("greedy continuations", style="bold"), table)
    console.print()


def _on_one_line(text: str) -> str:
    """The text with single spaces for line ends, other white space and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
