"""Where a run is logged while it goes on: nowhere, in CSV files, or with Weights & Biases."""

import csv
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from subfit.errors import SubFitError
from subfit.model.processes import is_rank_zero
from subfit.tracking.plots import draw_scores
from subfit.tracking.records import SITES, flat, sites

LoggerName = Literal["none", "csv", "wandb"]


class Log:
    """Logs nothing; the others do what it does, and log.

    Args:
        folder: folder of what a run leaves besides its result, such as the state of a fine-tuning; none, if not given.
        resume: file with the state of a fine-tuning to go on from.
    """

    def __init__(self, folder: str | None = None, resume: str | None = None):
        if resume is not None and not Path(resume).is_file():
            raise SubFitError(f"there is no checkpoint {resume} to resume from")
        self.folder, self.resume = folder, resume

    def curves(self) -> Any:
        """Returns the logger of Lightning's that training curves go to, if there is one."""
        return False

    def result(self, record: dict[str, Any], output: str | None = None) -> None:
        """Logs the record of a compression, and that it was saved to a folder, if it was."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        """Ends the log; an error marks the run as failed."""


class CsvLog(Log):
    """Writes `metrics.csv`, the training curves, and `sites.csv`, what is known of each site."""

    def curves(self) -> Any:
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(str(self.folder), name="", version="", flush_logs_every_n_steps=1)

    def result(self, record: dict[str, Any], output: str | None = None) -> None:
        assert self.folder is not None
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            with open(Path(self.folder) / "sites.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([SITES, *sites(record)])
        except OSError as error:
            print(f"cannot write {self.folder}/sites.csv: {error}", file=sys.stderr)


class WandbLog(Log):
    """A run of Weights & Biases, whose own settings (environment variables, `wandb login`) hold.

    Where one cannot be started online, it is kept offline, and a line says so.

    Args:
        configuration: the whole configuration of the run, as plain data.
        group: runs of one group are shown together, such as the cells of an ablation.
        artifact: whether to log the saved checkpoint, too.
    """

    def __init__(
        self,
        configuration: dict[str, Any],
        folder: str | None = None,
        resume: str | None = None,
        group: str | None = None,
        artifact: bool = False,
    ):
        super().__init__(folder, resume)
        self._artifact = artifact
        self._run = _start(config=configuration, tags=_tags(configuration), group=group)

    def curves(self) -> Any:
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(experiment=self._run)

    def result(self, record: dict[str, Any], output: str | None = None) -> None:
        import wandb

        with tempfile.TemporaryDirectory(prefix="subfit-picture-") as folder:
            picture = Path(folder) / "scores.png"
            draw_scores(record, picture)
            table = wandb.Table(columns=list(SITES), data=[list(row) for row in sites(record)])
            self._run.log({"sites": table, "scores": wandb.Image(str(picture))})
        left_out = ("configuration", "scores")  # the one is the run's configuration, the other in the table
        self._run.summary.update({key: value for key, value in record.items() if key not in left_out})
        if self._artifact and output is not None:
            self._run.log_artifact(output, name=Path(output).absolute().name, type="model")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


def open_log(
    logger: LoggerName,
    configuration: dict[str, Any],
    folder: str | None = None,
    resume: str | None = None,
    *,
    group: str | None = None,
    artifact: bool = False,
) -> Log:
    """Returns the log of a run; see `Log` and `WandbLog`.

    Raises:
        SubFitError: if there is no such logger, or it has nowhere to write to.
    """
    if logger not in ("none", "csv", "wandb"):
        raise SubFitError(f"unknown logger {logger!r}; use none, csv or wandb")
    if logger == "csv" and folder is None:
        raise SubFitError("the logger csv writes beside the output folder; give one")
    if not is_rank_zero():
        return Log(folder, resume)
    if logger == "wandb":
        return WandbLog(configuration, folder, resume, group, artifact)
    return (CsvLog if logger == "csv" else Log)(folder, resume)


class TableLog:
    """One run of Weights & Biases for a whole ablation: a step of its curves, and a line of its table, for each cell.

    Args:
        name: of the run.
    """

    def __init__(self, name: str):
        self._run = _start(name=name, job_type="ablation")
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


def _tags(configuration: dict[str, Any]) -> list[str]:
    """The names of the strategies, each with what it is."""
    kinds = ("scorer", "selector", "attention_bypass", "ffn_bypass")
    values = {kind: configuration.get(kind) for kind in kinds}
    names = {kind: value["class_path"] if isinstance(value, dict) else value for kind, value in values.items()}
    return [f"{kind}:{name}"[:64] for kind, name in names.items() if name]  # W&B's limit


def _start(**options: Any) -> Any:
    """Starts a run of W&B: online where there is a login and a network, unless its settings say otherwise."""
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
