"""A signal that arrives where Python lets no exception out ends the command all the same."""

import signal
import subprocess
import sys
import time

import pytest

from subfit.cli.signals import Terminated, heeded, said_of_result
from subfit.interruptions import not_lost


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_in_a_finalizer_is_not_lost(number, error, capsys):
    class Finalized:
        def __del__(self):
            signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    try:
        with pytest.raises(error), heeded(ends=False):
            made = Finalized()
            del made
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Exception ignored" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_an_interruption_of_which_a_library_makes_another_error_is_not_lost(number, error):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error) as found, heeded(ends=False), not_lost():
            try:
                signal.raise_signal(number)
            except BaseException:
                other = ValueError("could not determine the shape")
                other.add_note("the result is in model")
                raise other from None
        assert found.value.__notes__ == ["the result is in model"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(ValueError, match="another one"), heeded(ends=False), not_lost():
            raise ValueError("another one")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_that_is_left_waiting_does_not_keep_an_interrupted_process():
    """As of a pool that was interrupted when it had started the thread, and not yet noted it."""
    program = (
        "import sys, threading\nfrom subfit.cli import signals\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "signals.PATIENCE = 0.2\nsignals.end_at_last(143)\nsys.exit(143)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 143


@pytest.mark.parametrize("there", [False, True])  # as that of an interrupted run is, when it is resumed
def test_an_interruption_after_a_result_is_written_says_where_it_is(there, tmp_path):
    output, record = tmp_path / "model", tmp_path / "model" / "compression.json"
    if there:
        output.mkdir()
        record.write_text("{}")
    for written in (False, True):
        with pytest.raises(KeyboardInterrupt) as found, said_of_result(str(output)):
            if written:
                output.mkdir(exist_ok=True)
                (tmp_path / "new").write_text("{}")
                (tmp_path / "new").rename(record)
            raise KeyboardInterrupt
        assert getattr(found.value, "__notes__", []) == ([f"the result is in {output}"] if written else [])
