"""Whether tokens suit the model that reads them, and each other; what only makes a result worse is a warning."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.model.digests import tensor_bytes
from subfit.model.processes import is_rank_zero
from subfit.options.reading import read_mapping

PADDING = 8  # rows that a table of learned positions may have beyond the positions, such as OPT's two
SAME = ("model", "seed", "calibration")  # options that the calibration tokens follow from

logger = logging.getLogger(__name__)


def warn(message: str) -> None:
    """Logs a warning, which is one line on stderr unless logging is set up otherwise; one process of several does."""
    if is_rank_zero():
        logger.warning(message)


def check_positions(model: Any, length: int) -> None:
    """Warns of windows that are longer than the sequences that a model was made for, once for each model.

    Raises:
        SubFitError: if its positions are learned, so that it has none for the last tokens.
    """
    config = getattr(model, "config", None)
    most = None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int) or length <= most:
        return
    said = f"windows of {length} tokens are longer than the {most} positions of the model"
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if any(most <= t.num_embeddings <= most + PADDING for t in tables if t is not model.get_input_embeddings()):
        raise SubFitError(f"{said}, which are learned; give a length of at most {most}")
    if not getattr(model, "warned_of_positions", False):  # as texts are read one by one
        model.warned_of_positions = True
        warn(f"{said}: what is measured is not what it does within them")


def check_vocabulary(model: Any, tokens: Tensor, where: str) -> None:
    """Raises SubFitError if a token is outside of the model's vocabulary."""
    rows = None if model is None else model.get_input_embeddings().num_embeddings
    if rows is not None and tokens.numel() and int(tokens.max()) >= rows:
        raise SubFitError(f"{where}: token {int(tokens.max())} is outside of the model's {rows}; is it another tokenizer's?")


def shared_windows(tokens: Tensor, others: Tensor) -> int:
    """Returns how many of some windows are in the tokens of others, as a whole and in that order.

    Args:
        tokens: (windows, length), such as those to evaluate on.
        others: (windows, length), such as those to calibrate on; the length may be another.
    """
    text = tensor_bytes(others.flatten())
    return sum(tensor_bytes(window) in text for window in tokens)


def warn_of_shared_windows(tokens: Tensor, seen: Mapping[str, Tensor], name: str) -> None:
    """Warns if the tokens that a model is evaluated on, of this name, have windows that it was made from.

    Args:
        seen: the tokens that it was made from, by what they were for, such as `calibration`.
    """
    for purpose, others in seen.items():
        if shared := shared_windows(tokens, others):
            said = f"{shared} of {len(tokens)} windows are among those of the {purpose}"
            warn(f"{name}: {said}: what is measured on them is better than on other text")


def warn_of_other_tokens(record_path: str, configuration: Mapping[str, Any], digest: str) -> None:
    """Warns if a run from a record has other calibration tokens than the recorded run, by options that are the same.

    Args:
        record_path: a configuration file; nothing is compared if it is no record.
        configuration: the options of this run as plain data.
        digest: SHA-256 of this run's calibration tokens.
    """
    record = read_mapping(record_path)
    before, found = record.get("configuration"), record.get("calibration_tokens")
    if not isinstance(before, dict) or not isinstance(found, dict) or found.get("sha256") in (None, digest):
        return
    if all(before.get(key) == configuration[key] for key in SAME):
        why = "a file, the model, its type, what is held out or subfit differs, or paths lead elsewhere from this folder"
        warn(f"the calibration tokens are not those of {record_path}, whose model, seed and calibration are the same: {why}")
