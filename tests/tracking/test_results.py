"""The table of the submodules is complete or not there."""

import pytest
from lightning.pytorch.loggers import CSVLogger

from subfit.tracking.results import log_result


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path):
    record = {"scores": {"attention.0": 1.0, "nonsense": 2.0}, "selected": [], "explained_variance": {}}
    with pytest.raises(ValueError):
        log_result(CSVLogger(str(tmp_path), name="", version=""), record)
    assert [path.name for path in tmp_path.rglob("*sites.csv*")] == []
