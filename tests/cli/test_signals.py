"""A signal that arrives where Python lets no exception out ends the command all the same."""

import signal
import time

import pytest

from subfit.cli.signals import Terminated, heeded


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
