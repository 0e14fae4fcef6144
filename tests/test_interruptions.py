"""Steps that signals wait for."""

import os
import signal
import threading
import time

import pytest

from subfit.interruptions import uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step(number):
    """Also where another thread takes it, as the threads of torch do."""
    done = []
    other = threading.Thread(target=time.sleep, args=(0.5,))
    other.start()

    def handle(received, frame):
        done.append("handled")
        raise KeyboardInterrupt

    before = signal.signal(number, handle)
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), number)
                time.sleep(0.05)
                done.append("inner step")
            done.append("outer step")
        assert done == ["inner step", "outer step", "handled"]
        assert signal.getsignal(number) is handle
    finally:
        signal.signal(number, before)
        other.join()


def test_in_another_thread_it_changes_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert seen == [before]
