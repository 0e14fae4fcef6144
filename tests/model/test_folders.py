"""A folder is complete or not there; what a killed run has left of it is removed once its process is gone."""

import multiprocessing
import time

import pytest
from filelock import FileLock

from subfit.errors import SubFitError
from subfit.model.folders import EARLIER, LOCK, check_free, new_folder


def write(path, entered):
    with new_folder(str(path)) as folder:
        (folder / "half").write_text("half")
        entered.set()
        time.sleep(600)


def test_what_a_killed_process_has_left_is_removed_and_not_before(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered = context.Event()
    process = context.Process(target=write, args=(tmp_path / "model", entered))
    process.start()
    assert entered.wait(600)
    check_free(str(tmp_path / "model"))
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.partial-") and (left / "model" / "half").exists()  # its owner is at work
    process.kill()
    process.join()
    check_free(str(tmp_path / "other"))
    assert left.exists()  # another folder's
    with new_folder(str(tmp_path / "model")) as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


def test_a_run_that_was_killed_while_it_replaced_a_folder_has_not_lost_it(tmp_path):
    left = tmp_path / ".model.partial-abc"
    (left / EARLIER).mkdir(parents=True)
    (left / EARLIER / "weights").write_text("closed form")
    with FileLock(left / LOCK):
        check_free(str(tmp_path / "model"))
        assert left.exists()
    with pytest.raises(SubFitError, match="the output folder .*model exists"):
        check_free(str(tmp_path / "model"))
    assert (tmp_path / "model" / "weights").read_text() == "closed form" and not left.exists()


def test_a_folder_is_replaced_by_a_whole_one_only(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(SubFitError, match="exists; give a new one"), new_folder(str(tmp_path / "model")):
        pass
    with pytest.raises(SubFitError, match="what was there is kept"), new_folder(str(tmp_path / "model"), replace=True):
        raise OSError(28, "No space left on device")
    with pytest.raises(SubFitError, match="is kept"), new_folder(str(tmp_path / "model"), replace=True) as folder:
        folder.rmdir()  # so that the second of the two renamings fails
    assert (tmp_path / "model" / "old").exists()
    with new_folder(str(tmp_path / "model"), replace=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
