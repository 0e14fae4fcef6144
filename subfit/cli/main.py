"""The command line: one command is one file here.

Results go to stdout; progress (see `subfit.progress`) and messages to stderr. User errors print one line and exit with
status 2.
"""

import argparse
import os
import signal
import sys
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
        print(f"subfit {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"subfit {command}: interrupted; {kept}", file=sys.stderr)
        return 130
    except _Terminated:
        print(f"subfit {command}: terminated; {kept}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (BrokenPipeError, SystemExit) as error:
        closed = isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError)  # as rich leaves
        if debug or not closed:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        return 141  # as a process that the signal of a broken pipe ends
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(SystemExit):
    """SIGTERM has arrived."""


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leaves by an exception, so that what is half-written is removed on the way, and then the terminal is clean."""
    raise _Terminated(128 + number)
