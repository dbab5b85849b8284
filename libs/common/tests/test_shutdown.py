"""The first signal asks, the second leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from libs.common.shutdown import Shutdown, call_on_stop


@pytest.fixture
def shutdown() -> Iterator[Shutdown]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    shutdown = Shutdown()
    shutdown.install()
    yield shutdown
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks(shutdown: Shutdown, number: signal.Signals):
    assert not shutdown.asked

    os.kill(os.getpid(), number)

    assert shutdown.wait(5)
    assert shutdown.asked


def test_a_loop_that_waits_is_woken(shutdown: Shutdown):
    threading.Timer(0.05, shutdown.ask).start()
    started = time.monotonic()

    assert shutdown.wait(10)
    assert time.monotonic() - started < 5


def test_waiting_without_a_signal_ends_by_itself(shutdown: Shutdown):
    assert shutdown.wait(0.01) is False


def test_the_second_signal_leaves_at_once():
    program = (
        "import os, signal, time\n"
        "from libs.common.shutdown import Shutdown\n"
        "Shutdown().install()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('asked', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout) == (1, "asked\n")


def test_a_server_that_stops_itself_still_hears_of_it_and_so_does_what_it_serves(shutdown: Shutdown):
    called = threading.Event()
    call_on_stop(called.set)

    os.kill(os.getpid(), signal.SIGTERM)

    assert called.wait(5)
    assert shutdown.wait(5)
