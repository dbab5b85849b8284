"""Closes runs, whoever says that they ended: their executor, or the sweep for a silent engine."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import structlog

from libs.common.postgres import Connection
from services.scheduler import run_store
from services.scheduler.metrics import QUEUE_WAIT, RUN_DURATION, RUNS, START_LATENESS
from services.scheduler.output import keep_tail
from services.scheduler.retry import LOST_TOO_OFTEN, Ending, decide_ending
from services.scheduler.run_store import Finished, LockedRun, Moved
from services.scheduler.states import Reason, TaskStatus

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Closed:
    """A run that was closed, why, and its times."""

    run: LockedRun
    ending: Ending
    moved: Moved


def close_runs(connection: Connection, reports: Sequence[tuple[LockedRun, Finished]]) -> list[Closed]:
    """Decide and write how each locked run and its task go on. Returns those that were still live."""
    endings = {run.run_id: _decide(run, report) for run, report in reports}
    moved = run_store.finish_runs(
        connection,
        [
            (_keep_tail(report), endings[run.run_id], _decide_message(report, endings[run.run_id]))
            for run, report in reports
        ],
    )
    runs = {run.run_id: run for run, _ in reports}
    return [Closed(runs[end.run_id], endings[end.run_id], end) for end in moved]


def observe_closed(closed: Sequence[Closed]) -> None:
    """Count and log. Call after the commit: a transaction may run twice."""
    for entry in closed:
        run, ending, moved = entry.run, entry.ending, entry.moved
        RUNS.labels(ending.run_status, ending.reason or "").inc()
        if moved.started_at is not None:
            RUN_DURATION.observe(max((moved.finished_at - moved.started_at).total_seconds(), 0.0))
        log.info(
            "run_finished",
            run_id=str(run.run_id),
            task_id=str(run.task_id),
            request_id=run.request_id,
            attempt=run.number,
            status=ending.run_status,
            task_status=ending.task_status,
            reason=ending.reason,
            executor_id=run.executor_id,
        )


def observe_started(runs: Mapping[UUID, LockedRun], moved: Sequence[Moved]) -> None:
    """Measure how long runs that have just started had waited. Call after the commit."""
    for start in moved:
        run = runs[start.run_id]
        if start.started_at is None:
            continue
        wait = max((start.started_at - run.due_at).total_seconds(), 0.0)
        QUEUE_WAIT.observe(wait)
        if run.is_scheduled and run.lost_count == 0:
            START_LATENESS.observe(wait)
        log.info(
            "run_started",
            run_id=str(run.run_id),
            task_id=str(run.task_id),
            request_id=run.request_id,
            attempt=run.number,
            executor_id=run.executor_id,
            waited_ms=round(wait * 1000, 1),
        )


def _decide(run: LockedRun, report: Finished) -> Ending:
    return decide_ending(
        report.outcome,
        reason=report.reason,
        exit_code=report.exit_code,
        stop_reason=run.stop_reason,
        is_deleted=run.is_deleted,
        attempts=run.attempts,
        lost_count=run.lost_count,
        policy=run.policy,
        chance=random.random(),  # noqa: S311  Only spreads load.
    )


def _decide_message(report: Finished, ending: Ending) -> str | None:
    if ending.task_status == TaskStatus.FAILED and ending.reason == Reason.EXECUTOR_LOST:
        return LOST_TOO_OFTEN
    return report.error_msg


def _keep_tail(report: Finished) -> Finished:
    return report if report.result is None else replace(report, result=keep_tail(report.result))
