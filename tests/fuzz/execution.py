"""Runs a command in this process, in a folder of its own, and judges how it has ended."""

import base64
import contextlib
import io
import json
import re
import shutil
import signal
import tempfile
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from subfit.cli.main import main
from subfit.model.embedded import EMBEDDED

SLOWEST = 30  # seconds of the processor, after which a command is taken to go on for ever; all are over in one
LONGEST = 2000  # characters of a message


@dataclass
class Case:
    """A command and the files that it finds, beside those of the world, of which they take the place."""

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)

    def as_json(self) -> str:
        """Returns the case as text, as the corpus keeps it."""
        files = {name: _as_text(content) for name, content in self.files.items()}
        return json.dumps({"arguments": self.arguments, "files": files}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Case":
        """Reads a case of the corpus."""
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {name: _as_bytes(value) for name, value in content["files"].items()}
        return cls(content["arguments"], files)


def problem(case: Case, world: Path) -> str | None:
    """Runs a case and returns what is wrong with how it ended, in a line that names the place; None if all is well.

    The embedded models are not installed for it: the default one would take minutes where a case names no other.

    Args:
        world: a folder of files and folders that the command finds.
    """
    out, err = io.StringIO(), io.StringIO()
    missing = {name: replace(package, name="not_installed") for name, package in EMBEDDED.items()}
    with (
        _folder(case, world) as folder,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.dict(EMBEDDED, missing),
    ):
        signal.signal(signal.SIGPROF, _too_slow)
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        try:
            code = main(case.arguments)
        except SystemExit as leaving:  # of the help, and where an option of argparse is asked for it
            code = int(leaving.code or 0)
        except BaseException as error:
            return _described(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return _judged(case, code, err.getvalue()) or _failed_rows(folder)


def _judged(case: Case, code: int, err: str) -> str | None:
    if "Traceback (most recent call last)" in err:
        return f"a traceback is shown: {err.strip().splitlines()[-1][:200]}"
    if code == 0 or (code == 1 and case.arguments[0] == "ablate"):
        return None
    if code != 2:
        return f"exit code {code}"
    last = err.strip("\n").split("\n")[-1]
    if not re.match(r"subfit( \w+)?: error: .*\S", last):
        return f"the message is more than one line, or none: {err[-300:]!r}"
    if len(last) > LONGEST or any(ord(character) < 32 for character in last):
        return f"the message is too long, or has control characters: {last[:300]!r}"
    return None


def _failed_rows(folder: Path) -> str | None:
    """A cell of an ablation that failed by something else than an error of the user."""
    for path in folder.glob("*/rows.jsonl"):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return f"a cell fails: {' '.join(json.loads(line)['traceback'].strip().splitlines()[-3:])}"
    return None


def _described(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/subfit/" in frame.filename]
    place = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else "?"
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _folder(case: Case, world: Path) -> Any:
    """A copy of the world, in which weights are links, with the case's own files; the command runs in it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "world"
        shutil.copytree(world, folder, copy_function=_copy)
        for file, content in case.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).unlink(missing_ok=True)
            (folder / file).write_bytes(content)
        with contextlib.chdir(folder):
            yield folder


def _copy(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


def _too_slow(number: int, frame: Any) -> None:
    raise TimeoutError(f"it takes more than {SLOWEST} s of the processor")


def _as_text(content: bytes) -> str | dict[str, str]:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _as_bytes(value: str | dict[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])
