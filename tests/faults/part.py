"""A part of the system as a process group of its own, which can be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import requests

from tests.polling import wait_until

READY_SECONDS = 60.0

# The kernel's letters for what doesn't run and won't by itself: proc(5).
DEAD = "XZ"
FROZEN = DEAD + "T"


class Part:
    """`name` says which. What it prints goes to a file beside those of the others."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        root: Path,
        environment: Mapping[str, str],
        port: int,
        log: Path,
    ) -> None:
        self.name = name
        self.port = port
        self._arguments = [sys.executable, "-m", *arguments]
        self._root = root
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def has(self, pid: int) -> bool:
        """Whether the process is this part, or a worker of it."""
        return self._process is not None and os.getpgid(pid) == self._process.pid

    def start(self, **changes: str) -> None:
        """Without waiting for it. `changes` of its environment hold for this start alone."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                cwd=self._root,
                env=self._environment | changes,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5.0).status_code == 200
        except requests.RequestException:
            return False

    def wait_ready(self) -> None:
        def look() -> bool:
            assert self.is_running, f"{self.name} has ended by itself; see {self._log}"
            return self.is_ready()

        wait_until(look, what=f"{self.name} was ready; see {self._log}", seconds=READY_SECONDS, every=0.1)

    def kill(self) -> None:
        """At its return nothing of it runs any more, nor does a worker."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._wait_states(DEAD, what=f"{self.name} was dead")

    def freeze(self) -> None:
        """At its return none of its threads runs: a busy machine takes a while to stop them all."""
        self._signal(signal.SIGSTOP)
        self._wait_states(FROZEN, what=f"{self.name} was frozen")

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _wait_states(self, states: str, *, what: str) -> None:
        wait_until(lambda: set(self._list_states()) <= set(states), what=what, every=0.01)

    def _list_states(self) -> Iterator[str]:
        """The kernel's letter for each thread of the group."""
        assert self._process is not None
        for path in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
            # Others come and go while they are looked at.
            with contextlib.suppress(OSError):
                state, _parent, group = path.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self._process.pid:
                    yield state

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            # Of gunicorn, the workers too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def find_free_port() -> int:
    """For a server that starts later, and again: none of those that the kernel gives away meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
