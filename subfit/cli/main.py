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

from subfit import __version__
from subfit.cli.arguments import Parser
from subfit.cli.signals import Terminated, end_at_last, heeded, kept, notes
from subfit.errors import SubFitError, is_lack_of_memory, shortened
from subfit.interruptions import not_lost

LONGEST = 1500  # characters of a message, which may have the content of a file in it
SMALLER = "give a smaller --batch_size, another --dtype, or --device_map disk where the command has it"
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
    """Runs the command line and returns the exit code.

    Args:
        argv: the arguments; if not given, those of the process, which is taken to end then (see `signals.heeded`).
    """
    _open_missing_streams()
    with heeded(ends=argv is None):
        code = _run(sys.argv[1:] if argv is None else argv)
    if argv is None and code in (130, 128 + signal.SIGTERM):
        end_at_last(code)
    return code


def _run(arguments: list[str]) -> int:
    command, program, debug = "", "subfit", "--debug" in arguments
    rest = [argument for argument in arguments[1:] if argument != "--debug"]
    try:
        if nulls := [argument for argument in arguments if "\0" in argument]:  # no file can have such a name
            raise SubFitError(f"the argument {nulls[0]!r} has a null character")
        command = _command(arguments[:1])
        program = f"subfit {command}"
        with not_lost():
            code: int = import_module(f"subfit.cli.{command}").run(rest)
        sys.stdout.flush()
        return code
    except SubFitError as error:
        if debug:
            raise
        _say(f"{program}: error: {'; '.join([shortened(str(error), LONGEST), *notes(error)])}")
        return 2
    except KeyboardInterrupt as error:
        _end_of_progress()
        _say(f"{program}: interrupted; {kept(command, error)}")
        return 130
    except Terminated as error:
        _end_of_progress()
        _say(f"{program}: terminated; {kept(command, error)}")
        return 128 + signal.SIGTERM
    except (MemoryError, RuntimeError) as error:
        if debug or not is_lack_of_memory(error):
            raise
        _end_of_progress()
        _say(f"{program}: error: there is not enough memory; {'; '.join([SMALLER, *notes(error)])}")
        return 2
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
        _say(f"{program}: error: {'; '.join([f'{what}{cause}', *notes(error)])}")
        return 2


def _command(arguments: list[str]) -> str:
    """The command that is named first."""
    parser = Parser("subfit", "Post-training compression of language models.")
    parser.add_argument("--version", action="version", version=f"subfit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)  # its own parser answers --help
    command: str = parser.parse_args(arguments).command
    return command


def _end_of_progress() -> None:
    """Ends what is shown, where an interruption came as it was to end."""
    from subfit import progress  # what it needs is slow to import, and not there if nothing was shown

    progress.end()


def _say(message: str) -> None:
    """Writes one line to stderr; what cannot be printed, and may be in what was given, is escaped."""
    print("".join(c if c.isprintable() else repr(c)[1:-1] for c in message), file=sys.stderr)


def _open_missing_streams() -> None:
    """Gives a process that was started without stdout or stderr some, so that no file that it opens becomes these."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lasts
