"""Steps that no signal interrupts half-way, and interruptions that are not lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
arrived: list[BaseException] = []  # what the handlers of signals have raised in the command that runs


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within the context, SIGINT and SIGTERM wait for its end; for steps that take milliseconds.

    Their handlers are replaced, as a mask of the main thread lets them in by any other thread. In another thread it does
    nothing: handlers only ever run in the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, lambda its, frame: received.append(its))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextmanager
def not_lost() -> Iterator[None]:
    """Within the context, an error that a library has made of an interruption is that interruption again."""
    try:
        yield
    except Exception as error:
        if not arrived:
            raise
        for note in getattr(error, "__notes__", []):
            arrived[-1].add_note(note)
        raise arrived[-1] from error
