"""Keeps the note that a part of the scheduler is at work: silence of others counts only while it was there."""

from __future__ import annotations

import threading
from typing import Any

import structlog

from libs.common.clock import utc_now
from libs.common.postgres import DATABASE_DOWN, Pool
from services.scheduler import run_store
from services.scheduler.store import read_capacity

log = structlog.get_logger()

PART_HTTP = "http"
PART_DISPATCH = "dispatch"
PART_SWEEP = "sweep"
PART_RETENTION = "retention"
LOOPS = (PART_DISPATCH, PART_SWEEP, PART_RETENTION)

_BEAT_SECONDS = 5.0
_LATE_SECONDS = 30.0
# Without the database /readyz says so itself; these two needn't wait for it as well.
_PROBE_SECONDS = 0.3


class Presence:
    """Beats for the HTTP side from a thread of its own, in every worker."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(_BEAT_SECONDS)

    def _run(self) -> None:
        while True:
            try:
                with self._pool.connection() as connection:
                    run_store.beat(connection, PART_HTTP)
            except DATABASE_DOWN as error:
                log.warning("presence_not_noted", error=type(error).__name__)
            except Exception:
                log.exception("presence_failed")
            if self._closed.wait(_BEAT_SECONDS):
                return


def read_executors(pool: Pool) -> dict[str, Any]:
    """Facts for `/readyz`: executors heard of lately, their slots, and how many of those are in use."""
    with pool.connection(timeout=_PROBE_SECONDS) as connection:
        capacity = read_capacity(connection)
    if capacity.executors == 0:
        raise LookupError("no executor is connected")
    return {"alive": capacity.executors, "slots": capacity.slots, "running": capacity.running}


def read_loops(pool: Pool) -> dict[str, Any]:
    """Facts for `/readyz`: how many seconds ago each loop last did its work. Raises when one is late."""
    with pool.connection(timeout=_PROBE_SECONDS) as connection:
        parts = {part.name: part for part in run_store.list_parts(connection)}
    ages = {
        name: round((utc_now() - parts[name].seen_at).total_seconds(), 1) if name in parts else None
        for name in LOOPS
    }
    late = [name for name, age in ages.items() if age is None or age > _LATE_SECONDS]
    if late:
        raise LookupError(f"nothing was heard of: {', '.join(late)}")
    return {"secondsSinceLastSuccess": ages}
