"""Reads a model's weights, and refuses those that are not the model's: transformers would fill the rest at random."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from subfit.errors import SubFitError

REPORTS = {  # by logger: what is said in a warning, and here in the error, or is meant to be so
    "transformers.modeling_utils": "LOAD REPORT",
    "accelerate.big_modeling": "they were offloaded",
}


def read_weights(load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Returns the model that a `from_pretrained` of transformers loads.

    Raises:
        SubFitError: if a weight of the model is not in the checkpoint, or one in the checkpoint is not of the model; except
            what the architecture says may be so.
    """
    with _silent():
        model, found = load(*args, output_loading_info=True, **options)
    missing, other = found["missing_keys"], found["unexpected_keys"]
    said = [f"{_named(missing)} not in the weight files"] if missing else []
    said += [f"{_named(other)} in them, but not in the model"] if other else []
    if said:
        raise SubFitError(f"its weights are not those of its config.json: {'; '.join(said)}")
    return model


def _named(keys: Collection[str]) -> str:
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more are" if others else f"{first} is"


@contextmanager
def _silent() -> Iterator[None]:
    for name in REPORTS:
        logging.getLogger(name).addFilter(_is_no_report)
    try:
        yield
    finally:
        for name in REPORTS:
            logging.getLogger(name).removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return REPORTS[record.name] not in record.getMessage()
