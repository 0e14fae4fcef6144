"""Runs of Weights & Biases, whose own settings (environment variables, `wandb login`) hold."""

import sys
from types import TracebackType
from typing import Any, Self

from subfit.errors import SubFitError
from subfit.tracking.records import flat


class TableLog:
    """One run of Weights & Biases for a whole ablation: a step of its curves, and a line of its table, for each cell.

    Args:
        name: of the run.
    """

    def __init__(self, name: str):
        self._run = start_run(name=name, job_type="ablation")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Logs the row of a finished cell."""
        short = {**row["values"], **{key: row[key] for key in ("texts", "size", "seconds", "total_seconds")}}
        self._rows.append(flat(short))
        self._run.log(self._rows[-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        """Logs the table and ends the run."""
        import wandb

        columns: list[Any] = list(dict.fromkeys(key for row in self._rows for key in row))
        data = [[row.get(column) for column in columns] for row in self._rows]
        self._run.log({"cells": wandb.Table(columns=columns, data=data, allow_mixed_types=True)})
        self._run.finish(exit_code=0 if error is None else 1)


def tags(configuration: dict[str, Any]) -> list[str]:
    """Returns the names of a configuration's strategies, each with what it is."""
    kinds = ("scorer", "selector", "attention_bypass", "ffn_bypass")
    values = {kind: configuration.get(kind) for kind in kinds}
    names = {kind: value["class_path"] if isinstance(value, dict) else value for kind, value in values.items()}
    return [f"{kind}:{name}"[:64] for kind, name in names.items() if name]  # W&B's limit


def start_run(**options: Any) -> Any:
    """Returns a new run of W&B: online where there is a login and a network, unless its settings say otherwise.

    Where one cannot be started online, it is kept offline, and a line says so.

    Raises:
        SubFitError: if W&B cannot use its settings.
    """
    import wandb

    try:
        if wandb.setup().settings.mode != "online" or wandb.login(prompt=False, verify=False):
            return wandb.init(**options)
        reason = "there is no login"
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
    except ValueError as error:
        raise SubFitError(f"W&B cannot use its settings: {' '.join(str(error).split())}") from error
    print(f"W&B: {reason}; the run is logged offline, for `wandb sync`", file=sys.stderr)
    return wandb.init(mode="offline", **options)
