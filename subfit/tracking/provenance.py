"""The software that made a record: versions and commit."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from subfit.tracking.records import FORMAT_VERSION

PACKAGES = ("subfit", "torch", "transformers")


def provenance() -> dict[str, Any]:
    """Returns the format of a record, the versions of Python and of the packages, and the commit of the code, if known."""
    return {
        "format_version": FORMAT_VERSION,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": code_commit(),
    }


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
