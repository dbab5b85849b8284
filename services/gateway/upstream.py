"""Calls to one of our services: pooled connections, time limits, and errors in the API's terms."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client import Counter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
)
from urllib3.exceptions import TimeoutError as UpstreamTimeout
from urllib3.util import parse_url

from libs.common.errors import ApiError, BadGateway, GatewayTimeout, Unavailable

log = structlog.get_logger()

CONNECT_SECONDS = 2.0
READ_SECONDS = 30.0
# A service that is being restarted is back within this; who can't reach it waits for that.
PATIENCE_SECONDS = 5.0
PAUSE_SECONDS = 0.1
# Shorter than the services' own limit (deploy/gunicorn.conf.py, keepalive), so that a request never meets a
# connection which the other side is just closing.
IDLE_SECONDS = 20.0

_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})

UPSTREAM_ERRORS = Counter(
    "gateway_upstream_errors_total", "Calls to a service that brought no answer.", ["upstream", "kind"]
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a service. `target` is path and query; `is_question` is a POST that changes nothing."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_question: bool = False


class _Connection(HTTPConnection):
    idle_since = float("inf")


class _FreshPool(HTTPConnectionPool):
    """Closes a connection that was idle too long instead of handing it out; it then opens anew by itself."""

    ConnectionCls = _Connection

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection: Any = super()._get_conn(timeout)
        if time.monotonic() - connection.idle_since > IDLE_SECONDS:
            connection.close()
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.idle_since = time.monotonic()
        super()._put_conn(conn)


class _Outage:
    """Since when a service can't be reached: one that is away for longer than a restart keeps nobody waiting."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._since: float | None = None

    def is_short_yet(self) -> bool:
        """To be asked when it couldn't be reached."""
        if self._since is None:
            self._since = time.monotonic()
        return time.monotonic() - self._since < self._patience_seconds

    def end(self) -> None:
        self._since = None


class Upstream:
    """A service by its name and address. `connections` is how many are kept; more are opened when needed."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        connections: int,
        connect_seconds: float = CONNECT_SECONDS,
        read_seconds: float = READ_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.name = name
        self._url = parse_url(url)
        self._connections = connections
        self._timeout = Timeout(connect=connect_seconds, read=read_seconds)
        self._pool = self._open_pool(connections)
        self._outage = _Outage(patience_seconds)

    def send(self, call: Call, *, read_seconds: float | None = None, is_patient: bool = True) -> BaseHTTPResponse:
        """The answer with its body still unread: read it to the end, or close it.

        A call whose connection broke is sent once more, on a new one, when its method may be repeated. One for
        which no connection came about, so that nothing was sent, waits for a service that is being restarted,
        unless it is not patient. BadGateway, Unavailable or GatewayTimeout when there is no answer.
        """
        timeout = self._timeout
        if read_seconds is not None:
            timeout = Timeout(connect=timeout.connect_timeout, read=read_seconds)
        pool, may_break = self._pool, call.is_question or call.method in _REPEATABLE
        while True:
            try:
                answer = _send(pool, call, timeout)
            except (NewConnectionError, ConnectTimeoutError) as error:
                if not (is_patient and self._outage.is_short_yet()):
                    raise self.translate(error) from error
                time.sleep(PAUSE_SECONDS)
            except (HTTPError, OSError) as error:
                if isinstance(error, UpstreamTimeout) or not may_break:
                    raise self.translate(error) from error
                log.info("upstream_retried", upstream=self.name, error=type(error).__name__)
                pool, may_break = self._open_pool(1), False
            else:
                self._outage.end()
                return answer

    def fetch_json(self, call: Call, *, read_seconds: float = 5.0, is_patient: bool = True) -> tuple[int, Any]:
        """Status and decoded body of a small answer; BadGateway also when it isn't JSON."""
        response = self.send(call, read_seconds=read_seconds, is_patient=is_patient)
        try:
            body = response.read()
            return response.status, json.loads(body)
        except ValueError as error:
            raise self.translate(error) from error
        except (HTTPError, OSError) as error:
            response.close()
            raise self.translate(error) from error
        finally:
            response.release_conn()

    def translate(self, error: Exception) -> ApiError:
        """The API's error for one of the HTTP client's, counted and logged. It names no internal address."""
        answer = _to_api_error(self.name, error)
        UPSTREAM_ERRORS.labels(self.name, answer.code).inc()
        log.warning("upstream_failed", upstream=self.name, code=answer.code, error=type(error).__name__)
        return answer

    def _open_pool(self, connections: int) -> HTTPConnectionPool:
        kind = HTTPSConnectionPool if self._url.scheme == "https" else _FreshPool
        return kind(str(self._url.host), self._url.port, maxsize=connections, block=False)


def _send(pool: HTTPConnectionPool, call: Call, timeout: Timeout) -> BaseHTTPResponse:
    return pool.urlopen(
        call.method,
        call.target,
        body=call.body or None,
        headers=dict(call.headers),
        retries=False,
        redirect=False,
        assert_same_host=False,
        timeout=timeout,
        preload_content=False,
        decode_content=False,
    )


def _to_api_error(name: str, error: Exception) -> ApiError:
    if isinstance(error, ConnectTimeoutError | NewConnectionError):
        return Unavailable(f"The {name} service can't be reached. Try again.", retry_after_seconds=2)
    if isinstance(error, UpstreamTimeout | TimeoutError):
        return GatewayTimeout(
            f"The {name} service took too long. It may still have done what was asked: look before trying again.",
            retry_after_seconds=5,
        )
    return BadGateway(
        f"The {name} service broke off. It may still have done what was asked: look before trying again.",
        retry_after_seconds=2,
    )
