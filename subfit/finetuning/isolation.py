"""Context managers that undo what Lightning changes in the process and in the loggers."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from subfit.model.processes import destroy_process_group


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, Lightning's hints and warnings are not shown: about workers, and loaders that cannot be resumed
    (ours are)."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the context, Ctrl+C is the KeyboardInterrupt that it is elsewhere; Lightning makes SystemExit of it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise


@contextmanager
def kept_open(loggers: list[Logger]) -> Iterator[None]:
    """Within the context, a Trainer does not end loggers, as it does after each of its calls: the run goes on."""
    for logger in loggers:
        vars(logger)["finalize"] = lambda status: None
    try:
        yield
    finally:
        for logger in loggers:
            vars(logger).pop("finalize", None)


@contextmanager
def processes_of(strategy: Any) -> Iterator[None]:
    """Within the context, processes that a strategy of Lightning's starts may work together; afterwards they do not."""
    try:
        yield
    finally:
        if strategy != "auto" and not torch.distributed.is_torchelastic_launched():
            destroy_process_group()
