"""The command line: one command is one file here.

Results go to stdout; progress (see `subfit.progress`) and messages to stderr. User errors print one line and exit with
status 2.
"""

import argparse
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType

from subfit import __version__
from subfit.cli.arguments import Parser
from subfit.errors import SubFitError

COMMANDS = {
    "compress": "replace submodules of a model by small fitted bypasses",
    "evaluate": "perplexity and zero-shot accuracy of a model, and what it retains of a reference's",
    "benchmark": "speed and memory of a compressed model, beside the dense one",
    "ablate": "run the cells of a grid, which share what they have in common",
    "report": "one page, with pictures, on what ablations have found",
    "push": "upload a compressed model to the hub",
    "export": "write a model as a file for llama.cpp",
    "list": "the scorers, selectors, bypasses and presets there are",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    _open_missing_streams()
    parser = Parser("subfit", "Post-training compression of language models.")
    parser.add_argument("--version", action="version", version=f"subfit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)  # its own parser answers --help
    try:
        command = parser.parse_args(arguments[:1]).command
    except SubFitError as error:
        print(f"subfit: error: {error}", file=sys.stderr)
        return 2
    kept = "finished cells are kept" if command == "ablate" else "nothing was written"
    before = signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in arguments
    rest = [argument for argument in arguments[1:] if argument != "--debug"]
    try:
        code: int = import_module(f"subfit.cli.{command}").run(rest)
        sys.stdout.flush()
        return code
    except SubFitError as error:
        if debug:
            raise
        print(f"subfit {command}: error: {'; '.join([str(error), *_notes(error)])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"subfit {command}: interrupted; {'; '.join(_notes(error) or [kept])}", file=sys.stderr)
        return 130
    except _Terminated as error:
        print(f"subfit {command}: terminated; {'; '.join(_notes(error) or [kept])}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (OSError, SystemExit) as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error  # rich leaves by SystemExit
        if debug or not isinstance(cause, OSError):
            raise
        if cause.filename is None:  # it was a stream that is open, of which the rest would fail again at the end
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(cause, BrokenPipeError):
            return 141  # as a process that the signal of a broken pipe ends
        what = "the result cannot be written: " if cause.filename is None else ""
        print(f"subfit {command}: error: {'; '.join([f'{what}{cause}', *_notes(error)])}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _notes(error: BaseException) -> list[str]:
    """What was added to an error on its way, such as where the result of the finished part of a run is."""
    return getattr(error, "__notes__", [])


def _open_missing_streams() -> None:
    """Gives a process that was started without stdout or stderr some, so that no file that it opens becomes these."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lasts


class _Terminated(SystemExit):
    """SIGTERM has arrived."""


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leaves by an exception, so that what is half-written is removed on the way, and then the terminal is clean."""
    raise _Terminated(128 + number)
