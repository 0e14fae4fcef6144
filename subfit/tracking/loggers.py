"""Logs a run with any number of Lightning's loggers."""

import sys
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from subfit.errors import SubFitError
from subfit.model.processes import is_rank_zero
from subfit.options.signatures import instantiate, parse_value

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

LOGGERS = ("csv", "mlflow", "tensorboard", "wandb")
BESIDE_OUTPUT = ("csv", "tensorboard")  # these write to the folder of the run


class Log:
    """The loggers of a run, none by default; and its folder. As a context, it ends the loggers that were made for it.

    Args:
        folder: folder of what a run leaves besides its result, such as the state of a fine-tuning; none, if not given.
        resume: file with the state of a fine-tuning to go on from.
        artifact: whether Weights & Biases gets the saved checkpoint, too.
        configuration: the options of the run as plain data, as far as they are known.

    Attributes:
        loggers: for Lightning's Trainer.
    """

    def __init__(
        self,
        folder: str | None = None,
        resume: str | None = None,
        artifact: bool = False,
        configuration: Mapping[str, Any] | None = None,
    ):
        self.folder, self.resume, self.configuration = folder, resume, configuration or {}
        self.loggers: list[Logger] = []
        self._made: list[Logger] = []
        self._artifact = artifact

    def add(self, given: Any, configuration: dict[str, Any], group: str | None) -> None:
        """Adds a logger, by name, as a mapping or as an object, and logs a configuration with it; see `open_log`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a folder that has files already
            try:
                logger = _make(given, self.folder, configuration, group)
                self.loggers.append(logger)
                if logger is not given:
                    self._made.append(logger)
                logger.log_hyperparams(configuration)
            except SubFitError:
                raise
            except Exception as error:  # whatever a package or a server says
                raise SubFitError(f"the logger {_name(given)} cannot be made: {' '.join(str(error).split())}") from error

    def result(self, record: dict[str, Any], output: str | None = None) -> None:
        """Logs the record of a compression, and that it was saved to a folder, if it was."""
        if not self.loggers:
            return
        from subfit.tracking.results import log_result

        for logger in self.loggers:
            _try(logger, log_result, logger, record, output if self._artifact else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        """Ends the log; an error marks the run as failed."""
        if not self.loggers:
            return
        from lightning.pytorch.loggers import WandbLogger

        for logger in self.loggers:
            _try(logger, logger.finalize, "success" if error is None else "failed")
        for logger in self._made:
            if isinstance(logger, WandbLogger):
                _try(logger, logger.experiment.finish, 0 if error is None else 1)


def open_log(
    logger: Any,
    configuration: dict[str, Any],
    folder: str | None = None,
    resume: str | None = None,
    *,
    group: str | None = None,
    artifact: bool = False,
) -> Log:
    """Returns the log of a run.

    Args:
        logger: one logger, or a list of them; each a name in `LOGGERS`, a Logger of Lightning's, or its dotted path or
            `class_path` and `init_args`. None and `none` are no logger. `csv` writes `metrics.csv`, `hparams.yaml` and
            `sites.csv` to the folder, `tensorboard` its events; `wandb` and `mlflow` follow the settings of these packages.
            Where W&B cannot be reached, the run is kept offline.
        configuration: the whole configuration of the run, as plain data.
        folder, resume, artifact: see `Log`.
        group: Weights & Biases shows the runs of one group together, such as the cells of an ablation.

    Raises:
        SubFitError: if there is no such logger, it cannot be made, or it has nowhere to write to.
    """
    wanted = check_loggers(logger, folder)
    log = Log(folder, resume, artifact, configuration)
    if is_rank_zero():
        try:
            for given in wanted:
                log.add(given, configuration, group)
        except BaseException as error:
            log.__exit__(type(error), error, error.__traceback__)
            raise
    return log


def check_loggers(logger: Any, folder: str | None) -> list[Any]:
    """Returns the loggers of an option as a list, none of them made.

    Raises:
        SubFitError: if there is no such logger, it does not take its arguments, or it has nowhere to write to.
    """
    wanted = [each for each in (logger if isinstance(logger, list | tuple) else [logger]) if each not in (None, "none", "")]
    for given in wanted:
        if isinstance(given, str) and "." not in given:
            if given not in LOGGERS:
                raise SubFitError(f"unknown logger {given!r}; use none, {', '.join(LOGGERS)}, or class_path and init_args")
            if given in BESIDE_OUTPUT and folder is None:
                raise SubFitError(f"the logger {given} writes beside the output folder; give one")
        else:
            from lightning.pytorch.loggers import Logger

            parse_value(Logger, given, "logger")
    return wanted


def _make(given: Any, folder: str | None, configuration: dict[str, Any], group: str | None) -> "Logger":
    from lightning.pytorch import loggers

    made: Logger
    if given == "csv":
        made = loggers.CSVLogger(str(folder), name="", version="", flush_logs_every_n_steps=1)
    elif given == "tensorboard":
        made = loggers.TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)
    elif given == "mlflow":
        made = loggers.MLFlowLogger("subfit")
    elif given == "wandb":
        from subfit.tracking.wandb_runs import start_run, tags

        made = loggers.WandbLogger(experiment=start_run(tags=tags(configuration), group=group))
    else:
        made = instantiate(loggers.Logger, given, "logger")
    return made


def _name(given: Any) -> str:
    if isinstance(given, dict):
        return str(given.get("class_path"))
    return given if isinstance(given, str) else type(given).__name__


def _try(logger: "Logger", action: Callable[..., None], *arguments: Any) -> None:
    """Does something with a logger; what it cannot log is no reason to lose the run, and is shown."""
    try:
        action(*arguments)
    except Exception as error:
        print(f"{type(logger).__name__} has failed: {' '.join(str(error).split())}", file=sys.stderr)
