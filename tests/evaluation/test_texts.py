from typing import Any

import pytest

from subfit.calibration.settings import Data
from subfit.evaluation.texts import domains

TEXTS = {"samples": Data(source="self"), "file": Data(path="a.txt"), "mixed": Data(source="self+text", path="a.txt")}


@pytest.mark.parametrize(
    ("calibration", "in_domain", "expected"),
    [
        (None, None, [None, None, None]),
        (None, ["file"], [False, True, False]),
        ({"source": None, "path": [], "dataset": None, "windows": 4}, None, [True, False, None]),
        ({"source": "self", "path": ["b.txt"]}, None, [True, False, None]),
        ({"source": "text+self", "path": ["b.txt"]}, None, [True, None, None]),
        ({"source": "text+self", "path": ["b.txt"]}, ["file"], [True, True, False]),
        ({"source": None, "path": ["b.txt"]}, None, [None, None, None]),
        ({"source": "self"}, ["file"], [True, True, False]),
    ],
)
def test_samples_are_of_the_domain_of_a_calibration_on_samples(
    calibration: dict[str, Any] | None, in_domain: list[str] | None, expected: list[bool | None]
):
    assert domains(TEXTS, in_domain, calibration) == dict(zip(TEXTS, expected, strict=True))
