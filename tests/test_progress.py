"""Progress as it is seen: in a pipe, and on a terminal."""

import os
import re
import subprocess
import sys

import pytest
from terminals import HIDE_CURSOR, SHOW_CURSOR, Terminal, plain

from subfit.progress import duration, is_rank_zero

NAME = "scoring the sixty submodules of a model with a long name"
TWO_STAGES = f"""
import sys, time
from tqdm import tqdm
from subfit import progress
from subfit.progress import Stage

progress.FIRST = progress.INTERVAL = 0.2
with Stage("loading a model"):
    list(tqdm(range(3), desc="of another library", file=sys.stderr))
with Stage("{NAME}") as scoring:
    with Stage("reading", 4, "layers") as reading:
        for layer in range(4):
            time.sleep(PAUSE)
            with Stage("training", 9, "steps") as training:
                training.advance(5)
                training.note = f"loss {{layer}}"
            reading.advance()
"""


def script(pause: float = 0.0, more: str = "") -> list[str]:
    return [sys.executable, "-c", TWO_STAGES.replace("PAUSE", str(pause)) + more]


def lines(command: list[str], **environment: str) -> list[str]:
    kept = {key: value for key, value in os.environ.items() if key != "SUBFIT_PROGRESS"}
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})
    assert done.returncode == 0 and done.stdout == "", done.stderr
    return done.stderr.splitlines()


def test_in_a_pipe_a_line_is_left_of_each_stage():
    first, second = lines(script())
    assert re.fullmatch(r"loading a model: [\d.]+ s", first) and re.fullmatch(rf"{NAME}: [\d.]+ s, loss 3", second)


@pytest.mark.parametrize(
    "environment", [{"SUBFIT_PROGRESS": "0"}, {"WORLD_SIZE": "3", "RANK": "1"}, {"WORLD_SIZE": "3", "LOCAL_RANK": "2"}]
)
def test_it_can_be_turned_off_and_one_process_of_many_shows_it(environment):
    assert lines(script(), **environment) == []


def test_in_a_pipe_a_long_stage_says_where_it_is():
    _, *during, last = lines(script(pause=0.5))
    assert any(line.startswith(f"{NAME}: 0/4 layers, ") and line.endswith(" s so far") for line in during)
    assert any(line.startswith(f"{NAME}: 3/4 layers, loss 2, ") and line.endswith(" s left") for line in during)
    assert re.fullmatch(rf"{NAME}: [\d.]+ s, loss 3", last)


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_on_a_terminal_a_bar_shows_the_stage_and_a_line_is_left(columns, tmp_path):
    shown, status = Terminal(script(pause=0.5), tmp_path, columns).end()
    assert status == 0 and "of another library" not in shown and "…" not in shown
    whole = plain(shown)
    assert re.search(r"loading a model: [\d.]+ s\n", whole)
    assert re.search(rf"{NAME}: [\d.]+ s, loss 3", whole.replace("\n", " " if columns == 40 else "\n"))
    assert "3/4" in whole and "left" in whole and ("━" in whole) == (columns >= 60)
    assert shown.count(HIDE_CURSOR) == shown.count(SHOW_CURSOR) and shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path):
    shown, _ = Terminal(script(), tmp_path, TERM="dumb").end()
    assert plain(shown) == shown.replace("\r", "") and len(shown.splitlines()) == 2


def test_an_error_in_a_stage_leaves_no_line_of_it_and_the_next_is_shown():
    more = """
def work():
    global inner
    with Stage("failing"):
        inner = Stage("inner", 3)
        inner.__enter__()  # as a generator that an error leaves suspended
        raise ValueError
try:
    work()
except ValueError:
    pass
inner.__exit__(None, None, None)
with Stage("next"):
    assert tqdm(range(3)).disable
assert not tqdm(range(3), file=open("/dev/null", "w")).disable
"""
    assert [line.partition(":")[0] for line in lines(script(more=more))] == ["loading a model", NAME, "next"]


def test_durations():
    values = (0.04, 9.94, 12.3, 59.7, 185, 3599.6, 7620)
    shown = ["0.0 s", "9.9 s", "12 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 07 min"]
    assert list(map(duration, values)) == shown


def test_a_process_that_is_alone_has_rank_zero_whatever_is_left_in_its_environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    assert is_rank_zero()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_rank_zero()
