"""Reads the documents of the project: README, CONTRIBUTING, and the pages in docs/.

What a page shows is in fenced blocks. A block whose fence names a file, as in "```yaml grid.yaml", is that file; others are
run as they stand.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\S*)(?: (\S+))?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: the language after its fence, the file that it is, if it is one, and its text."""

    language: str
    file: str
    text: str

    def commands(self) -> list[str]:
        """The commands of a shell block."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, in their order."""
    return [Block(language, file, text) for language, file, text in FENCE.findall(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """Returns a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))
