import os
import signal
import threading

import pytest

from jaxmeta.runs.interrupts import deferred_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_interrupt_waits_and_a_second_one_does_not(number):
    before = signal.getsignal(number)
    with deferred_interrupts() as interrupted:
        assert interrupted() is None
        os.kill(os.getpid(), number)
        assert interrupted() == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_in_another_thread_nothing_is_deferred():
    seen = []

    def run():
        before = signal.getsignal(signal.SIGINT)
        with deferred_interrupts() as interrupted:
            seen.append((interrupted(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, True)]
