"""Redis for what may be lost. A dead Redis costs one failed call; until it is back nobody asks it."""

from __future__ import annotations

import threading

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from libs.common.config import Secret

log = structlog.get_logger()

CALL_SECONDS = 0.25
PROBE_SECONDS = 0.5

# RedisError covers the protocol, OSError what the resolver and the socket raise themselves.
CACHE_DOWN = (redis.RedisError, OSError)


class Cache:
    """A Redis client behind a circuit breaker.

    The first failure opens it: calls then answer as if nothing were stored, without touching the network, while
    one background thread tries to get through. No request ever waits for a connection that can't be made.
    """

    def __init__(self, url: Secret) -> None:
        # As many connections as there are calls at a time: they end within CALL_SECONDS, one way or the other.
        self._pool = redis.ConnectionPool.from_url(
            url.reveal(),
            socket_timeout=CALL_SECONDS,
            socket_connect_timeout=CALL_SECONDS,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._redis = redis.Redis(connection_pool=self._pool)
        self._lock = threading.Lock()
        self._is_open = False
        self._stopped = threading.Event()

    @property
    def is_available(self) -> bool:
        return not self._is_open

    @property
    def pool(self) -> redis.ConnectionPool:
        """For a library with a client of its own; report its failures by `report_failure`."""
        return self._pool

    def find(self, key: str) -> str | None:
        """What is stored, None when there is nothing or Redis is away."""
        if self._is_open:
            return None
        try:
            value = self._redis.get(key)
        except CACHE_DOWN as error:
            self.report_failure(error)
            return None
        return value if isinstance(value, str) else None

    def store(self, key: str, value: str, *, seconds: int) -> None:
        """Keep it for that long, or don't: Redis may be away."""
        if self._is_open:
            return
        try:
            self._redis.set(key, value, ex=seconds)
        except CACHE_DOWN as error:
            self.report_failure(error)

    def check(self) -> bool:
        """Whether Redis answers now. Once it doesn't, nobody waits for it again until it is back."""
        if not self._is_open:
            try:
                self.ping()
            except CACHE_DOWN as error:
                self.report_failure(error)
        return self.is_available

    def ping(self) -> None:
        """Raise one of CACHE_DOWN when Redis doesn't answer."""
        self._redis.ping()

    def report_failure(self, error: Exception) -> None:
        """Stop asking Redis until it answers a ping again."""
        with self._lock:
            if self._is_open:
                return
            self._is_open = True
        log.warning("cache_unavailable", error=type(error).__name__)
        threading.Thread(target=self._probe, name="cache-probe", daemon=True).start()

    def close(self) -> None:
        self._stopped.set()
        self._pool.disconnect()

    def _probe(self) -> None:
        while not self._stopped.wait(PROBE_SECONDS):
            try:
                # Pooled connections of before the failure are dead, or would time out one by one.
                self._pool.disconnect()
                self.ping()
            except CACHE_DOWN:
                continue
            self._is_open = False
            log.info("cache_available")
            return
