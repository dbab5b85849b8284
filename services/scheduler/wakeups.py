"""Wake-ups of the dispatch loop over Redis. They only save time: the loop also looks by itself every second."""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis
import structlog

log = structlog.get_logger()

CHANNEL = "dispatch:wake"
_TIMEOUT_SECONDS = 1.0
_PAUSE_SECONDS = 2.0
_PING_SECONDS = 15.0


class Waker:
    """Sends wake-ups from a thread of its own, so a slow or dead Redis never holds a request up.

    Wake-ups that come while one is under way become one.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._asked = threading.Event()
        self._closed = threading.Event()
        self._is_down = False
        self._thread = threading.Thread(target=self._run, name="waker", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Returns at once."""
        self._asked.set()

    def ping(self) -> None:
        """Raise when Redis doesn't answer; for `/readyz`."""
        self._client.ping()

    def close(self) -> None:
        self._closed.set()
        self._asked.set()
        self._thread.join(_TIMEOUT_SECONDS * 3)
        self._client.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._asked.wait()
            self._asked.clear()
            try:
                self._client.publish(CHANNEL, b"")
                self._is_down = False
            except redis.RedisError as error:
                if not self._is_down:
                    log.warning("wake_up_failed", error=type(error).__name__)
                self._is_down = True
                self._closed.wait(_PAUSE_SECONDS)


class WakeListener:
    """Calls `on_wake` for every wake-up, and once after each time that the connection was made anew."""

    def __init__(self, url: str, on_wake: Callable[[], None]) -> None:
        self._url = url
        self._on_wake = on_wake
        self._closed = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wake-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_until_connected(self, seconds: float) -> bool:
        return self._connected.wait(seconds)

    def check(self) -> None:
        """Raise when there is no connection; for `/readyz`."""
        if not self._connected.is_set():
            raise ConnectionError("not connected")

    def close(self) -> None:
        self._closed.set()
        self._thread.join(_PING_SECONDS / 5)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError) as error:
                if self._connected.is_set():
                    log.warning("wake_up_connection_lost", error=type(error).__name__)
                self._connected.clear()
                self._closed.wait(_PAUSE_SECONDS)

    def _listen(self) -> None:
        client = redis.Redis.from_url(
            self._url,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS * 5,
            socket_keepalive=True,
            health_check_interval=_PING_SECONDS,
        )
        with client, client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(CHANNEL)
            while not self._closed.is_set():
                message = subscription.get_message(timeout=_TIMEOUT_SECONDS * 2)
                if message is None:
                    continue
                # The answer to the subscription counts as one: what came before it was missed.
                self._connected.set()
                self._on_wake()
