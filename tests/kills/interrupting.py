"""Runs commands in forked processes, and sends them a signal at some moment."""

import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forked import start
from terminals import Terminal

POLL = 0.0005  # seconds between looks at whether the moment has come
BEGUN = ".begun"  # a file that is there from when the command line heeds signals on; before, Python itself answers them
COMMAND = f"""
import sys
from subfit.cli import main
named = main._command
def begun(arguments):
    open("{BEGUN}", "w").close()
    return named(arguments)
main._command = begun
sys.exit(main.main())
"""


@dataclass(frozen=True)
class Moment:
    """When a signal is sent: so many seconds after the start, or after there is a file of this pattern."""

    number: int
    delay: float
    after: str = BEGUN


@dataclass(frozen=True)
class Ended:
    """How a command has ended: its exit code, below 0 if the signal has; what it has shown on stderr; and its seconds."""

    code: int
    shown: str
    seconds: float


def run(arguments: list[str], folder: Path, moment: Moment | None = None, terminal: bool = False) -> Ended:
    """Runs a command in a folder, with a terminal as its stderr or without one, and a signal at a moment."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    process = Terminal(command, folder) if terminal else start(command, folder)
    pid = process.pid

    def end() -> tuple[str, int]:
        if terminal:
            return process.end()
        return process.communicate()[1], process.wait()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(end)
        _wait(folder, BEGUN, ended)
        began = time.monotonic()
        if moment is not None:
            _wait(folder, moment.after, ended)
            time.sleep(moment.delay)
            with suppress(ProcessLookupError):  # it has ended before
                os.kill(pid, moment.number)
        shown, code = ended.result()
    return Ended(code, shown, time.monotonic() - began)


def _wait(folder: Path, pattern: str, ended: Future) -> None:
    """Waits for a file, or for the end."""
    while not ended.done() and not any(folder.glob(pattern)):
        time.sleep(POLL)
