"""Passwords: bcrypt, a few at a time, and the same work whether the user exists or not."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import bcrypt
from prometheus_client import Histogram

from libs.common.errors import Unavailable

MIN_BYTES = 8
# bcrypt looks at no more; longer ones are refused, never cut.
MAX_BYTES = 72

# A client, and the gateway before it, waits half as long again.
_WAIT_SECONDS = 20.0

BCRYPT_WAIT = Histogram(
    "users_bcrypt_wait_seconds",
    "Time in line before a password is hashed.",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


class PasswordHasher:
    """Hashes and compares with a cost of 2^`rounds`, at most `parallel` at a time in this process.

    At most `line` callers are inside, hashing or waiting: each keeps a thread, and without a bound a burst of
    logins would leave none for the session checks that all other requests of the system wait for. Whoever finds
    the line full, or waits longer than `wait_seconds`, gets Unavailable.
    """

    def __init__(self, *, rounds: int, parallel: int, line: int, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._rounds = rounds
        self._running = threading.BoundedSemaphore(parallel)
        self._admitted = threading.BoundedSemaphore(line)
        self._wait_seconds = wait_seconds
        self._nobodys_hash = bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(rounds))

    def hash(self, password: str) -> str:
        """`password` is of `MIN_BYTES` to `MAX_BYTES` bytes of UTF-8; ValueError when it is longer."""
        with self._turn():
            return bcrypt.hashpw(password.encode(), bcrypt.gensalt(self._rounds)).decode()

    def matches(self, password: str, password_hash: str | None) -> bool:
        """Whether the password is the one. None, for nobody, costs as much as a wrong password."""
        encoded = password.encode()
        # The comparison is made in any case, so that the time doesn't tell which of the reasons it was.
        candidate = self._nobodys_hash if password_hash is None else password_hash.encode()
        with self._turn():
            is_equal = bcrypt.checkpw(encoded[:MAX_BYTES], candidate)
        return is_equal and password_hash is not None and len(encoded) <= MAX_BYTES

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._admitted.acquire(blocking=False):
            raise _too_busy()
        try:
            started = time.monotonic()
            if not self._running.acquire(timeout=self._wait_seconds):
                raise _too_busy()
            try:
                BCRYPT_WAIT.observe(time.monotonic() - started)
                yield
            finally:
                self._running.release()
        finally:
            self._admitted.release()


def _too_busy() -> Unavailable:
    return Unavailable("Too many logins at this moment. Try again.", code="too_busy", retry_after_seconds=2)
