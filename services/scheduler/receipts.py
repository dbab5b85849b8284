"""A run's receipt: what it used, within which limits, and where its time went. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from services.scheduler.store import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of each phase, None while it isn't over, when the run never got there, or when nobody knows.

    waited: due → claimed. pulled: getting the image, 0 when it was there. created: the rest of claimed → started.
    ran: started → ended. collected: ended → its output, result and end are kept.
    """

    waited_seconds: float | None
    pulled_seconds: float | None
    created_seconds: float | None
    ran_seconds: float | None
    collected_seconds: float | None


def measure(run: Run) -> Timings:
    """Times of the engine's and the database's clock meet here, so small differences are cut off at 0."""
    prepared = _between(run.claimed_at, run.started_at)
    known = prepared is not None and run.pulled_seconds is not None
    return Timings(
        waited_seconds=_between(run.due_at, run.claimed_at or run.finished_at),
        pulled_seconds=_round(run.pulled_seconds),
        created_seconds=_round((prepared or 0.0) - (run.pulled_seconds or 0.0)) if known else None,
        ran_seconds=_between(run.started_at, run.finished_at),
        collected_seconds=_between(run.finished_at, run.closed_at) if run.started_at is not None else None,
    )


def to_receipt(run: Run) -> dict[str, Any]:
    """The run as the API answers it."""
    fields = {name: getattr(run, name) for name in _SHOWN}
    limits = {name: getattr(run, name) for name in _LIMITS}
    return {**fields, "limits": limits, "timings": asdict(measure(run))}


_SHOWN = (
    "number",
    "status",
    "reason",
    "exit_code",
    "error_msg",
    "executor_id",
    "engine_id",
    "image_digest",
    "queued_at",
    "started_at",
    "finished_at",
    "max_memory_mb",
    "cpu_seconds",
)
_LIMITS = ("cpus", "memory_mb", "pids", "timeout_seconds", "stop_grace_seconds")


def _between(begin: datetime | None, end: datetime | None) -> float | None:
    return None if begin is None or end is None else _round((end - begin).total_seconds())


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(seconds, 0.0), 3)
