"""Hints over Redis: that there is something to look at. They only save time: whoever gets them looks anyway."""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis
import structlog

log = structlog.get_logger()

# To the executors: the text is the id of one that has something to stop.
STOP_CHANNEL = "executors:stop"

_TIMEOUT_SECONDS = 1.0
_PAUSE_SECONDS = 2.0
_PING_SECONDS = 15.0


class HintSender:
    """Sends hints from a thread of its own, so a slow or dead Redis never holds a request up.

    The same hint that comes again while it waits is sent once. What can't be sent is dropped.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], None] = {}
        self._asked = threading.Event()
        self._closed = threading.Event()
        self._is_down = False
        self._thread = threading.Thread(target=self._run, name="hint-sender", daemon=True)
        self._thread.start()

    def send(self, channel: str, text: str = "") -> None:
        """Returns at once."""
        with self._lock:
            self._waiting[channel, text] = None
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
            with self._lock:
                hints, self._waiting = list(self._waiting), {}
            try:
                # In one round trip, however many: a sync of many runs has one for each.
                with self._client.pipeline(transaction=False) as together:
                    for channel, text in hints:
                        together.publish(channel, text)
                    together.execute()
                self._is_down = False
            except redis.RedisError as error:
                if not self._is_down:
                    log.warning("hint_not_sent", error=type(error).__name__)
                self._is_down = True
                self._closed.wait(_PAUSE_SECONDS)


class HintListener:
    """Calls `on_hint` with the text of every hint, and with "" each time that the connection was made anew."""

    def __init__(self, url: str, channel: str, on_hint: Callable[[str], None]) -> None:
        self._url = url
        self._channel = channel
        self._on_hint = on_hint
        self._closed = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hint-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_until_connected(self, seconds: float) -> bool:
        return self._connected.wait(seconds)

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

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
                    log.warning("hint_connection_lost", error=type(error).__name__)
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
            subscription.subscribe(self._channel)
            while not self._closed.is_set():
                message = subscription.get_message(timeout=_TIMEOUT_SECONDS * 2)
                if message is None:
                    continue
                # The answer to the subscription counts as one: what came before it was missed.
                self._connected.set()
                self._on_hint(message["data"].decode() if message["type"] == "message" else "")
