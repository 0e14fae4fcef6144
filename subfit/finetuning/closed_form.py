"""The closed-form result, which is saved before a fine-tuning begins and replaced at its end."""

from pathlib import Path
from typing import Any

from subfit.tracking.records import read_record

UNFINISHED = "the run was ended before the fine-tuning was"


def closed_form(stopped: str | None = None) -> dict[str, Any]:
    """Returns what a record says of a fine-tuning that has changed nothing; see `fine_tune`.

    Args:
        stopped: why.
    """
    kept: dict[str, Any] = {"kept": "closed-form", "step": 0, "kl_before": None, "kl_after": None, "stopped": stopped}
    return kept | {"trained_parameters": 0, "curve": []}


def is_unfinished(folder: str) -> bool:
    """Whether a folder holds the closed-form result of a run whose fine-tuning was not finished.

    Raises:
        SubFitError: if its record cannot be read.
    """
    path = Path(folder) / "compression.json"
    tuned = read_record(path).get("finetune") if path.is_file() else None
    return isinstance(tuned, dict) and tuned.get("stopped") == UNFINISHED
