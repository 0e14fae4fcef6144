"""The closed-form result, which is saved before a fine-tuning begins and replaced at its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subfit.tracking.records import read_record

UNFINISHED = "the run was ended before the fine-tuning was"
RUN_ONLY = ("output", "resume", "logger", "log_checkpoint", "engine", "device", "device_map", "max_memory", "fsdp")
NOT_COMPARED = (*RUN_ONLY, "evaluation", "finetune")  # options with which a run may go on otherwise than it began


def closed_form(stopped: str | None = None) -> dict[str, Any]:
    """Returns what a record says of a fine-tuning that has changed nothing; see `fine_tune`.

    Args:
        stopped: why.
    """
    kept: dict[str, Any] = {"kept": "closed-form", "step": 0, "kl_before": None, "kl_after": None, "stopped": stopped}
    return kept | {"trained_parameters": 0, "curve": []}


def identity_of_options(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of `run_identity` that is known before the model is loaded."""
    return {f"option {name}": value for name, value in configuration.items() if name not in NOT_COMPARED}


def is_unfinished(folder: str, configuration: Mapping[str, Any]) -> bool:
    """Whether a folder holds the closed-form result of a run with these options whose fine-tuning was not finished.

    Raises:
        SubFitError: if its record cannot be read.
    """
    path = Path(folder) / "compression.json"
    record = read_record(path) if path.is_file() else {}
    tuned = record.get("finetune")
    unfinished = isinstance(tuned, dict) and tuned.get("stopped") == UNFINISHED
    return unfinished and identity_of_options(record["configuration"]) == identity_of_options(configuration)
