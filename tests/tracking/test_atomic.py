"""A file is whole or not there, whoever else writes beside it."""

import pytest

from subfit.tracking.atomic import whole_file


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a") as partial:
        partial.write_text("half of")
        1 / 0  # noqa: B018  # it is there to fail
    assert list(tmp_path.iterdir()) == []


def test_temporary_names_of_equal_processes_differ(tmp_path):
    """Processes of two containers may have one id."""
    with whole_file(tmp_path / "a") as one, whole_file(tmp_path / "a") as two:
        one.write_text("1")
        two.write_text("2")
        assert one != two
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
