"""Bounds logins and signups: counted in Redis for all gateways together, or in this process while it is away."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence

import structlog
from limits import RateLimitItem
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import RateLimiter, SlidingWindowCounterRateLimiter
from prometheus_client import Counter

from libs.common.errors import TooManyRequests
from services.gateway.cache import CACHE_DOWN, Cache
from services.gateway.client_address import throttling_address
from services.gateway.published import Throttle

log = structlog.get_logger()

THROTTLED = Counter("gateway_throttled_total", "Requests refused because there were too many.", ["throttle"])

_Rate = tuple[RateLimitItem, tuple[str, ...]]


class Throttling:
    """Raises TooManyRequests for what goes over one of the configured rates."""

    def __init__(
        self,
        *,
        cache: Cache,
        redis_url: str,
        login_rate: RateLimitItem,
        login_address_rate: RateLimitItem,
        signup_rate: RateLimitItem,
    ) -> None:
        self._cache = cache
        self._login_rate = login_rate
        self._login_address_rate = login_address_rate
        self._signup_rate = signup_rate
        self._shared = SlidingWindowCounterRateLimiter(
            RedisStorage(redis_url, connection_pool=cache.pool, key_prefix="throttle")
        )
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())

    def check(self, throttle: Throttle, *, address: str, body: bytes) -> None:
        """Count this request. `body` names the account of a login, so that one account can't be guessed at."""
        for rate, keys in self._rates(throttle, throttling_address(address), body):
            if not self._hit(rate, keys):
                THROTTLED.labels(throttle.value).inc()
                log.warning("request_throttled", throttle=throttle.value)
                raise TooManyRequests(
                    f"Too many requests to {throttle.value} from here: {rate} are allowed. Wait, then try again.",
                    retry_after_seconds=self._wait_seconds(rate, keys),
                )

    def _rates(self, throttle: Throttle, address: str, body: bytes) -> Sequence[_Rate]:
        if throttle is Throttle.SIGNUP:
            return [(self._signup_rate, ("signup", address))]
        if throttle is Throttle.LOGIN:
            return [
                (self._login_address_rate, ("login", address)),
                (self._login_rate, ("login", address, name_account(body))),
            ]
        return []

    def _hit(self, rate: RateLimitItem, keys: tuple[str, ...]) -> bool:
        if self._cache.is_available:
            try:
                return self._shared.hit(rate, *keys)
            except CACHE_DOWN as error:
                self._cache.report_failure(error)
        return self._own.hit(rate, *keys)

    def _wait_seconds(self, rate: RateLimitItem, keys: tuple[str, ...]) -> int:
        limiter: RateLimiter = self._shared if self._cache.is_available else self._own
        try:
            wait = limiter.get_window_stats(rate, *keys).reset_time - time.time()
        except CACHE_DOWN as error:
            self._cache.report_failure(error)
            wait = 0.0
        return min(max(1, math.ceil(wait)), rate.get_expiry())


def name_account(body: bytes) -> str:
    """A name for the account that a login's body is about; one name for all that name none.

    It is a digest: neither addresses nor their shape end up in Redis.
    """
    try:
        email = json.loads(body.decode("utf-8"))["email"].strip().casefold()
        return hashlib.sha256(email.encode("utf-8", "replace")).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "none"
