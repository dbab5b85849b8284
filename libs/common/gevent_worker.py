"""gunicorn's gevent worker, which doesn't wait at its stop for connections on which nothing is under way."""

from __future__ import annotations

from types import FrameType
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker


class _Idle:
    """Entered by a connection's greenlet while it waits for the next request, which ends it after a while."""

    def __init__(self, greenlets: set[gevent.Greenlet], seconds: float) -> None:
        self._greenlets = greenlets
        self._timeout = gevent.Timeout(seconds, False)

    def __enter__(self) -> None:
        self._greenlets.add(gevent.getcurrent())
        self._timeout.start()

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        self._greenlets.discard(gevent.getcurrent())
        self._timeout.close()
        return error is self._timeout


class Worker(GeventWorker):  # type: ignore[misc]
    """A client that keeps its connection open would hold a restart up until `graceful_timeout`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[gevent.Greenlet] = set()

    def timeout_ctx(self) -> _Idle:
        """Around the wait for a request; none is waited for once the stop was asked."""
        return _Idle(self._idle, self.cfg.keepalive if self.alive else 0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        for greenlet in list(self._idle):
            greenlet.kill(block=False)
