"""What made a record: versions, commit and processor."""

import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from subfit.tracking.records import FORMAT_VERSION

PACKAGES = ("subfit", "torch", "transformers")
CPUS = Path("/proc/cpuinfo")  # of Linux


def provenance() -> dict[str, Any]:
    """Returns the format of a record, the versions of Python and the packages, the commit, if known, and the processor."""
    return {
        "format_version": FORMAT_VERSION,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": code_commit(),
        "processor": processor(),
    }


@cache
def processor() -> str:
    """Returns the kind of processor, its vector instructions, and the kind of GPU, if there is one.

    On another one, sums have another order, so that the last digits of a result may differ.
    """
    lines = CPUS.read_text(errors="replace").splitlines() if CPUS.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    parts = [names[0] if names else platform.processor() or platform.machine(), torch.backends.cpu.get_cpu_capability()]
    return ", ".join(parts + ([torch.cuda.get_device_name()] if torch.cuda.is_available() else []))


def differing(processors: Iterable[Any]) -> str:
    """Returns what to say of results of different processors; "" if they are of one, as far as that is known."""
    kinds = list(dict.fromkeys(kind for kind in processors if isinstance(kind, str)))
    return f"on another kind of processor, numbers may differ in their last digits: {'; '.join(kinds)}" if kinds[1:] else ""


@cache
def code_commit() -> dict[str, Any] | None:
    """Returns the commit (`sha`) of the checkout that this package runs from, and whether files differ from it (`dirty`).

    None where the package is not part of a git checkout, or there is no git.
    """
    folder = Path(__file__).parents[1]
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # not a package installed somewhere in a checkout
    sha = _git(folder, "rev-parse", "HEAD")
    if not tracked or not sha:
        return None
    return {"sha": sha, "dirty": bool(_git(folder, "status", "--porcelain", "--", ".", "../strategies"))}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, None if it fails."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # there is no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None
