"""The whole system's state in one answer, asked for in parallel and without telling where anything is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from libs.common.errors import ApiError
from services.gateway.upstream import Call, Upstream

# Longer than a part takes to find out that what it depends on is silent: its answer says what.
PROBE_SECONDS = 5.0
# Anyone may ask; however many do, the services are asked once in this time.
REUSE_SECONDS = 1.0

READY, DEGRADED, UNAVAILABLE = "ready", "degraded", "unavailable"
_STATES = {READY, DEGRADED, UNAVAILABLE}

Report = dict[str, Any]


class HealthReport:
    """Collects `/readyz` of each part. All of them are required, and so is an executor that takes runs."""

    def __init__(self, parts: Sequence[Upstream], *, executors_from: str, has_cache: Callable[[], bool]) -> None:
        self._parts = parts
        self._has_cache = has_cache
        self._executors_from = executors_from
        self._threads = ThreadPoolExecutor(max_workers=len(parts), thread_name_prefix="health")
        self._lock = threading.Lock()
        self._latest: tuple[int, Report] | None = None
        self._made_at = float("-inf")

    def read(self) -> tuple[int, Report]:
        """HTTP status and body: `{"status", "services": {name: {"status", "latencyMs", "checks"}}}`."""
        with self._lock:
            if self._latest is None or time.monotonic() - self._made_at > REUSE_SECONDS:
                self._latest = self._make()
                self._made_at = time.monotonic()
            return self._latest

    def _make(self) -> tuple[int, Report]:
        asked = dict(zip((part.name for part in self._parts), self._threads.map(_ask, self._parts), strict=True))
        services: Report = {"gateway": describe_gateway(has_cache=self._has_cache())}
        services |= {name: describe_part(*answer) for name, answer in asked.items()}
        services["executors"] = describe_executors(asked[self._executors_from][0])
        status = worst(part["status"] for part in services.values())
        return (503 if status == UNAVAILABLE else 200), {"status": status, "services": services}


def _ask(part: Upstream) -> tuple[Mapping[str, Any], float]:
    started = time.monotonic()
    try:
        _, body = part.fetch_json(Call("GET", "/readyz"), read_seconds=PROBE_SECONDS, is_patient=False)
    except ApiError:
        body = {}
    return body if isinstance(body, dict) else {}, round((time.monotonic() - started) * 1000, 2)


def describe_gateway(*, has_cache: bool) -> Report:
    """The gateway's own entry; it answers, so it works, if without what Redis adds."""
    redis = {"status": "up" if has_cache else "down"}
    return {"status": READY if has_cache else DEGRADED, "latencyMs": 0.0, "checks": {"redis": redis}}


def describe_part(readiness: Mapping[str, Any], latency_ms: float) -> Report:
    """One service's entry: its own state and that of what it depends on, without texts or addresses."""
    status = readiness.get("status")
    checks = readiness.get("checks")
    report: Report = {"status": status if status in _STATES else UNAVAILABLE, "latencyMs": latency_ms}
    if isinstance(checks, dict):
        report["checks"] = {name: _facts(check) for name, check in checks.items() if isinstance(check, dict)}
    return report


def describe_executors(scheduler_readiness: Mapping[str, Any]) -> Report:
    """The executors as the scheduler counts them: it is the one that they report to."""
    checks = scheduler_readiness.get("checks")
    facts = checks.get("executors") if isinstance(checks, dict) else None
    if not isinstance(facts, dict):
        return {"status": UNAVAILABLE}
    report = {name: value for name, value in _facts(facts).items() if name not in ("status", "latencyMs")}
    return {"status": READY if facts.get("status") == "up" else UNAVAILABLE, **report}


def worst(statuses: Any) -> str:
    """The system's state: as bad as its worst part."""
    found = set(statuses)
    return next((status for status in (UNAVAILABLE, DEGRADED) if status in found), READY)


def _facts(check: Mapping[str, Any]) -> Report:
    facts: Report = {"status": "up" if check.get("status") == "up" else "down"}
    numbers = {name: value for name, value in check.items() if isinstance(value, int | float)}
    return facts | numbers
