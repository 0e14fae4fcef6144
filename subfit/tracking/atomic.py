"""Atomic files: complete or not there, whichever processes write beside each other."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name to write to, which becomes `path` when the context ends; after an error, nothing is left.

    The name is unique among all processes of all hosts that share the folder; process ids repeat in containers.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
