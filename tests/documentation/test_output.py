"""The output that the README shows is what its commands print of the stored results.

These are made by the same commands: with `--json`, into `docs/quick-start/compress.json` and `evaluate.json`. Below a block
of commands, a block `text` shows what they print; a line `...` stands for what is left out.
"""

import json
import shlex

import pytest
from documents import ROOT, blocks

from subfit import api
from subfit.cli.main import main
from subfit.evaluation import evaluate
from subfit.pipeline import Compression

STORED = ROOT / "docs" / "quick-start"


def shown() -> list[tuple[list[str], list[str]]]:
    """The commands with an output below them, and the lines of that."""
    found = blocks(ROOT / "README.md")
    pairs = zip(found, found[1:], strict=False)
    return [(above.commands(), block.text.splitlines()) for above, block in pairs if block.language == "text"]


def test_output_is_shown_below_commands_alone():
    found = blocks(ROOT / "README.md")
    pairs = zip(found, found[1:], strict=False)
    assert all(above.language == "bash" for above, block in pairs if block.language == "text")


@pytest.mark.parametrize(("commands", "lines"), shown())
def test_the_output_is_that_of_the_stored_results(commands, lines, monkeypatch, capsys):
    record, result = (json.loads((STORED / f"{verb}.json").read_text()) for verb in ("compress", "evaluate"))
    monkeypatch.setattr(api, "run", lambda options: Compression(None, record))
    monkeypatch.setattr(evaluate, "evaluate", lambda model, **given: result)
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    printed = iter([line.rstrip() for line in capsys.readouterr().out.splitlines()])
    for line in lines:
        assert line == "..." or line in printed, line
