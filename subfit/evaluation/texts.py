"""The texts that a model is evaluated on: their names, and whether they are of the domain of its calibration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subfit.calibration.settings import Data, EvaluationData
from subfit.errors import SubFitError, shown
from subfit.tracking.records import read_record


def named_texts(data: Data | dict[str, Data] | None, in_domain: Sequence[str] | None, others: bool) -> dict[str, Data]:
    """Returns the texts by name.

    Args:
        data: texts by name, or a single one; if not given, a text sampled from the model, unless `others`.
        in_domain: names of texts.
        others: whether something else than texts is measured.

    Raises:
        SubFitError: if a text has no window or a file of it is missing, or `in_domain` names one that is not there.
    """
    if data is None:
        data = {} if others else EvaluationData()
    texts = data if isinstance(data, dict) else {"+".join(data.sources()): data}
    for name, text in texts.items():
        if text.windows < 1:
            raise SubFitError(f"text {name}: it has {text.windows} windows; at least 1 window is needed")
        text.check_files()
    unknown = [name for name in in_domain or () if name not in texts]
    if unknown:
        raise SubFitError(f"in_domain: there is no text {unknown[0]!r}; the texts are {', '.join(texts) or 'none'}")
    return texts


def domains(
    texts: dict[str, Data], in_domain: Sequence[str] | None, calibration: dict[str, Any] | None
) -> dict[str, bool | None]:
    """Returns for each text whether it is of the domain of the calibration; None where that is not known.

    What is sampled from the model is of the domain of a calibration on samples; where that was on samples alone, every other
    text is outside of it.

    Args:
        in_domain: names of texts in the domain; the others are outside. None if nobody has said.
        calibration: what the model was calibrated on, as `calibration_of` returns it.
    """
    options = {name: value for name, value in (calibration or {}).items() if name in ("source", "path", "dataset")}
    calibrated = set(Data(**options).sources()) if calibration else set[str]()

    def domain(name: str, text: Data) -> bool | None:
        if "self" in calibrated and text.sources() == ["self"]:
            return True
        if in_domain is not None:
            return name in in_domain
        return False if calibrated == {"self"} and "self" not in text.sources() else None

    return {name: domain(name, text) for name, text in texts.items()}


def calibration_of(model: str) -> dict[str, Any] | None:
    """Returns the options of the calibration tokens of a compressed model, if it is a folder that has them.

    Raises:
        SubFitError: if its record cannot be read, or is of a format that is not known.
    """
    path = Path(model) / "compression.json"
    if not path.is_file():
        return None
    found = read_record(path).get("configuration", {}).get("calibration")
    if found is not None and not isinstance(found, dict):
        raise SubFitError(f"{path}: configuration.calibration is {shown(found)}; it must be a mapping")
    return found
