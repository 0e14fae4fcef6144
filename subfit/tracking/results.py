"""Logs the record of a finished compression: measurements, and scores of the submodules as a table and a picture."""

import csv
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread

from subfit.tracking.atomic import whole_file
from subfit.tracking.plots import draw_scores
from subfit.tracking.records import SITES, flat, site_rows

MEASURED = ("size", "evaluation", "texts", "tasks", "tasks_mean", "finetune", "seconds")


def log_result(logger: Logger, record: dict[str, Any], checkpoint: str | None = None) -> None:
    """Logs the record of a compression: the measurements, and the table and the picture of the submodules' scores.

    Weights & Biases gets the whole record as the run's summary; CSV files the table; TensorBoard the table as text.

    Args:
        checkpoint: folder of the saved model, for Weights & Biases.
    """
    if isinstance(logger, WandbLogger):
        _log_wandb(logger.experiment, record, checkpoint)
        return
    logger.log_metrics(measurements(record), step=record.get("finetune", {}).get("step", 0))
    if isinstance(logger, CSVLogger):
        _write_table(Path(logger.log_dir) / "sites.csv", record)
    elif isinstance(logger, TensorBoardLogger):
        _log_tensorboard(logger.experiment, record)
    logger.save()


def measurements(record: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers that were measured, by their place in the record."""
    values = flat({key: record[key] for key in MEASURED if key in record})
    return {key: value for key, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def _write_table(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([SITES, *site_rows(record)])


def _log_tensorboard(writer: Any, record: dict[str, Any]) -> None:
    rows = [SITES, ["---"] * len(SITES), *site_rows(record)]
    writer.add_text("sites", "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))
    with tempfile.TemporaryDirectory(prefix="subfit-picture-") as folder:
        picture = Path(folder) / "scores.png"
        draw_scores(record, picture)
        writer.add_image("scores", imread(picture)[..., :3], dataformats="HWC")


def _log_wandb(run: Any, record: dict[str, Any], checkpoint: str | None) -> None:
    import wandb

    with tempfile.TemporaryDirectory(prefix="subfit-picture-") as folder:
        picture = Path(folder) / "scores.png"
        draw_scores(record, picture)
        table = wandb.Table(columns=list(SITES), data=[list(row) for row in site_rows(record)])
        run.log({"sites": table, "scores": wandb.Image(str(picture))})
    left_out = ("configuration", "scores")  # the one is the run's configuration, the other in the table
    run.summary.update({key: value for key, value in record.items() if key not in left_out})
    if checkpoint is not None:
        run.log_artifact(checkpoint, name=Path(checkpoint).absolute().name, type="model")
