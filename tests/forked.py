"""Processes for tests that run commands: forked from one that has imported everything, as an import takes seconds.

They are processes of their own in all else: streams, folder, environment, signals, exit status. What depends on how Python
starts needs a fresh one: what is imported, and what is read at import, as most variables of the environment are.
"""

import atexit
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
SUBFIT = Path(sys.executable).with_name("subfit")  # the console script


class Forked:
    """A forked process, with what tests use of `subprocess.Popen`; see `start`."""

    def __init__(self, command: list[str], folder: Path, outputs: Sequence[int], environment: Mapping[str, str]):
        self.args = command
        self.returncode: int | None = None
        pipes = [] if outputs else [os.pipe(), os.pipe()]
        self._outputs = [open(reader) for reader, _ in pipes]  # noqa: SIM115  # `communicate` closes them
        self._status, status = os.pipe()
        own = [os.open(os.devnull, os.O_RDONLY), *(writer for _, writer in pipes), status]
        request = json.dumps({"command": command, "folder": str(folder), "environment": dict(environment)})
        socket.send_fds(server(), [request.encode()], [own[0], *(outputs or own[1:3]), status])
        for descriptor in own:
            os.close(descriptor)
        (self.pid,) = struct.unpack("i", os.read(self._status, 4))

    def poll(self, timeout: float = 0) -> int | None:
        """Returns the exit status, negative for a signal; None if it has not ended after this many seconds."""
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = os.waitstatus_to_exitcode(*struct.unpack("i", os.read(self._status, 4)))
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Returns the exit status; a process that takes longer than this many seconds is killed."""
        if self.poll(timeout) is None:
            os.kill(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Returns what it has written to stdout and stderr, once it has ended."""
        with ThreadPoolExecutor() as pool:
            shown = [pool.submit(output.read) for output in self._outputs]
            self.wait(timeout)
        for output in self._outputs:
            output.close()
        return shown[0].result(), shown[1].result()


def start(
    command: Sequence[object],
    folder: Path,
    outputs: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Forked | subprocess.Popen:
    """Starts a Python process, in a session of its own.

    Args:
        command: `[sys.executable, "-c", code, ...]`, `[sys.executable, "-m", module, ...]` or `[SUBFIT, ...]`.
        folder: where it runs.
        outputs: the file descriptors of its stdout and stderr; without them, `communicate` returns what is written there.
        environment: its environment; else that of this process.
        fresh: start Python anew, as is always done where a fork is not safe.
    """
    command, environment = [*map(str, command)], os.environ if environment is None else environment
    if sys.platform == "linux" and not fresh:
        return Forked(command, folder, outputs, environment)
    stdout, stderr = outputs or (subprocess.PIPE, subprocess.PIPE)
    streams = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, "text": True}
    return subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True, preexec_fn=heed_interrupts, **streams
    )


def run(
    command: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None, fresh: bool = False
) -> subprocess.CompletedProcess:
    """Runs a Python process to its end, as `subprocess.run` does with `capture_output` and `text`; see `start`."""
    process = start(command, folder, environment=environment, fresh=fresh)
    shown = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, *shown)


def heed_interrupts() -> None:
    """Undoes, in a process to be, what a shell does to those it runs in the background: they ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@cache
def server() -> socket.socket:
    """Starts the process that others are forked from; returns what takes requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, SERVER, str(theirs.fileno())]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True, **streams)
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours
