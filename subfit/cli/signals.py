"""What SIGINT and SIGTERM do to a command: it leaves by an exception, so that what is half-written is removed on the way."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from subfit.interruptions import arrived
from subfit.options.sources import RECORD

KEPT = {  # what an interrupted command says of the files that it writes, whenever it is interrupted; others write none
    "ablate": "finished cells are kept",
    "benchmark": "a file that is there is whole",
    "export": "a file that is there is whole",
    "push": "a commit that is there is whole",
    "report": "a file that is there is whole",
}
NOTHING = "nothing was written"
PATIENCE = 30  # seconds in which an interrupted process may end by itself
SOON = 0.01  # seconds, after which Python has left a finalizer


class Terminated(SystemExit):
    """SIGTERM has arrived."""


@contextmanager
def heeded(ends: bool) -> Iterator[None]:
    """Within the context, SIGTERM raises `Terminated`, and SIGINT KeyboardInterrupt where it is not ignored.

    Args:
        ends: whether the process ends after it. Then both are ignored from there on, so that the exit code of a command that
            has done its work stays; else they do what they did before.
    """
    arrived.clear()
    unraisable, interrupts = sys.unraisablehook, signal.getsignal(signal.SIGINT) or signal.SIG_DFL
    before = signal.signal(signal.SIGTERM, _terminate)
    if interrupts is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _send_again
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        signal.signal(signal.SIGINT, signal.SIG_IGN if ends else interrupts)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ends else before)


@contextmanager
def said_of_result(output: str | None) -> Iterator[None]:
    """Within the context, which makes a result and shows it, whatever ends it has a note that says where it is.

    What ends the making itself has a note already, if there is a result. What comes just after it has none.
    """
    before = _state(output)
    try:
        yield
    except BaseException as error:
        if _state(output) != before and not notes(error):
            error.add_note(f"the result is in {output}")
        raise


def _state(output: str | None) -> tuple[int, int] | None:
    """What differs if a folder was written anew, as the result of a resumed run is; None if it is not there."""
    path = None if output is None else Path(output, RECORD)
    if path is None or not path.is_file():
        return None
    return path.stat().st_ino, path.stat().st_mtime_ns


def notes(error: BaseException) -> list[str]:
    """Returns what was added to an error on its way, such as where the result of the finished part of a run is."""
    return getattr(error, "__notes__", [])


def kept(command: str, error: BaseException) -> str:
    """Returns what to say of the files of an interrupted command."""
    return "; ".join(notes(error) or [KEPT.get(command, NOTHING)])


def end_at_last(code: int) -> None:
    """Ends the process with an exit code in a while, should it wait for a thread that an interruption has left waiting.

    A pool of threads that is interrupted as it starts one does not know of it, and so does not end it.
    """
    timer = threading.Timer(PATIENCE, os._exit, [code])
    timer.daemon = True
    timer.start()


def _send_again(lost: Any) -> None:
    """Sends a signal again whose exception is lost, as it was raised where Python lets none out, such as in a finalizer."""
    if issubclass(lost.exc_type, KeyboardInterrupt | Terminated):
        number = signal.SIGTERM if issubclass(lost.exc_type, Terminated) else signal.SIGINT
        threading.Timer(SOON, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(lost)


def _terminate(number: int, frame: FrameType | None) -> None:
    arrived.append(Terminated(128 + number))
    raise arrived[-1]


def _interrupt(number: int, frame: FrameType | None) -> None:
    arrived.append(KeyboardInterrupt())
    raise arrived[-1]
