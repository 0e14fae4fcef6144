"""Scores that were found before."""

import json
from math import isfinite
from pathlib import Path

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError, missing
from subfit.scorer import Scorer, Scores


class File(Scorer):
    """Scores read from a JSON file: a mapping of site names to numbers, or the `compression.json` of an earlier run.

    Args:
        path: of the file.

    Raises:
        SubFitError: if the file cannot be read, or does not give a finite number for every site.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SubFitError(f"file: the file of scores {missing(path)}") from None
        except OSError as error:
            raise SubFitError(f"file: cannot read scores from {path}: {error.strerror}") from error
        except ValueError as error:
            raise SubFitError(f"file: {path} is not JSON: {error}") from error
        found = found.get("scores", found) if isinstance(found, dict) else found
        if not isinstance(found, dict):
            raise SubFitError(f"file: {path} must hold a mapping of site names to numbers, or be a compression.json")
        self.scores = found

    def score(self, calibration: Calibration) -> Scores:
        missing = [site.name for site in calibration.sites if site.name not in self.scores]
        if missing:
            raise SubFitError(f"file: {self.path} has no score for {', '.join(missing)}")
        for site in calibration.sites:
            value = self.scores[site.name]
            if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
                raise SubFitError(f"file: {self.path} gives {value!r} for {site.name}; it must be a finite number")
        return {site: float(self.scores[site.name]) for site in calibration.sites}
