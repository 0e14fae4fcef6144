"""Runs a command on a terminal of its own."""

import os
import pty
import re
import struct
import termios
from fcntl import ioctl
from pathlib import Path

from forked import start

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process whose stderr, and stdout if asked for, is a terminal; with a keyboard that nobody touches.

    Args:
        columns: the width of the terminal.
        stdout: whether stdout is the terminal, too; else nothing of it is seen.
    """

    def __init__(self, command: list[str], folder: Path, columns: int = 100, stdout: bool = False, **environment: str):
        self._reader, writer = pty.openpty()
        ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "SUBFIT_PROGRESS")}
        unseen = writer if stdout else os.open(os.devnull, os.O_WRONLY)
        self._process = start(command, folder, (unseen, writer), {**kept, "TERM": "xterm-256color", **environment})
        if not stdout:
            os.close(unseen)
        os.close(writer)
        self._seen = b""
        self.pid, self.send_signal = self._process.pid, self._process.send_signal

    def wait_for(self, text: str) -> None:
        """Returns once this text was shown."""
        while text.encode() not in self._seen:
            assert self._read(), self._seen.decode()

    def end(self) -> tuple[str, int]:
        """Returns all that was shown, and the exit status."""
        while self._read():
            pass
        os.close(self._reader)
        return self._seen.decode(), self._process.wait(timeout=600)

    def _read(self) -> bytes:
        """What is shown next; nothing once the process has ended."""
        try:
            part = os.read(self._reader, 65536)
        except OSError:  # as Linux tells that nobody holds the other end
            return b""
        self._seen += part
        return part


def plain(shown: str) -> str:
    """Returns what was shown without control sequences."""
    return CONTROL.sub("", shown).replace("\r", "")
