"""The executors' sync: claims, lease renewals, reports and logs of one executor, in one transaction.

docs/task-model.md describes the claim, leases and takeover; the order of the steps here is the order there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from libs.common import failpoints
from libs.common.clock import format_time
from libs.common.errors import Conflict
from libs.common.postgres import Connection, Pool, in_transaction, on_connection
from services.scheduler import run_store
from services.scheduler.endings import Closed, close_runs, observe_closed, observe_started
from services.scheduler.metrics import CLAIMS, SYNC_DURATION, TAKEOVERS
from services.scheduler.run_store import (
    Executor,
    Finished,
    Held,
    Lease,
    LockedRun,
    Moved,
    Prepared,
    Report,
    Started,
    StoredOutput,
    SyncRequest,
    TaskSpec,
)
from services.scheduler.states import HELD_RUN, TERMINAL_RUN, ExecutorState, RunStatus

log = structlog.get_logger()

_PREFETCH_SECONDS = 2.0
_PREFETCH_IMAGES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """How long a lease lasts, how long after a restart nobody takes over, how far ahead images are pulled."""

    lease: timedelta = timedelta(seconds=30)
    settle: timedelta = timedelta(seconds=45)
    prefetch_ahead: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimAnswer:
    """`epoch` when it was granted, else `refusal`: unknown, cancelled, not_queued or draining."""

    run_id: UUID
    epoch: int | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Applied:
    """What one transaction did."""

    claims: Sequence[ClaimAnswer]
    accepted: Sequence[bool]
    renewed: set[UUID]
    taken: set[UUID]
    leases: Sequence[Lease]
    specs: Mapping[UUID, TaskSpec]
    stored: Mapping[UUID, StoredOutput]
    live: set[UUID]
    runs: Mapping[UUID, LockedRun]
    started: Sequence[Moved]
    closed: Sequence[Closed]
    is_new: bool
    is_draining: bool
    server_time: datetime


class ExecutorSync:
    """Answers syncs. `wake_dispatch` tells the dispatch loop that there is room, `hint_output` those who follow a
    task that it printed or went on; neither may block.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        config: SyncConfig,
        wake_dispatch: Callable[[], None],
        hint_output: Callable[[Collection[UUID]], None],
    ) -> None:
        self._pool = pool
        self._config = config
        self._wake_dispatch = wake_dispatch
        self._hint_output = hint_output
        self._prefetch = _CachedPrefetch(pool, ahead=config.prefetch_ahead)

    def sync(self, request: SyncRequest) -> dict[str, Any]:
        """Apply the request and say what the executor has to do. Safe to send again when its answer was lost.

        Raises Conflict when a later boot of the same executor id has taken this one's place.
        """
        with SYNC_DURATION.time():
            applied = in_transaction(self._pool, lambda connection: self._apply(connection, request))
        self._observe(request.executor, applied)
        granted = any(answer.epoch is not None for answer in applied.claims)
        if granted:
            failpoints.reach("claim_committed")
        if applied.closed:
            failpoints.reach("report_committed")
        # A run that has closed may have been what a quota or a group was full of.
        if granted or applied.closed or applied.is_new:
            self._wake_dispatch()
        self._hint_output(_list_moved_tasks(request, applied))
        return _to_answer(request, applied, prefetch=self._prefetch.read(), lease=self._config.lease)

    def _apply(self, connection: Connection, request: SyncRequest) -> _Applied:
        executor = request.executor
        registration = run_store.register_executor(connection, executor, claims=len(request.claims))
        if registration is None:
            raise Conflict(
                "A later start of this executor has taken its place; give it another EXECUTOR_ID or stop it.",
                code="executor_replaced",
            )
        runs = run_store.lock_runs(connection, _list_mentioned(request))
        again = _list_granted_before(request, runs)
        renewed = run_store.renew_leases(connection, executor, [*request.held, *again], lease=self._config.lease)
        run_store.append_logs(connection, request.logs)
        accepted, started, closed = _apply_reports(connection, runs, request.reports)
        is_draining = registration.state == ExecutorState.DRAINING
        claims = self._claim(connection, request, runs, again=again, is_draining=is_draining)
        taken, leases = self._take_over(connection, executor)
        if any(answer.epoch is not None for answer in claims):
            failpoints.reach("claim_not_committed")
        adopted = {lease.run_id for lease in _list_adopted(request, leases)}
        wanted = {answer.run_id for answer in claims if answer.epoch is not None} | adopted
        return _Applied(
            claims=claims,
            accepted=accepted,
            renewed=renewed,
            taken=taken,
            leases=leases,
            specs=run_store.list_specs(connection, wanted),
            stored=run_store.measure_logs(connection, adopted),
            live=run_store.list_live_runs(connection, request.questions),
            runs=runs,
            started=started,
            closed=closed,
            is_new=registration.is_new,
            is_draining=is_draining,
            server_time=registration.server_time,
        )

    def _claim(
        self,
        connection: Connection,
        request: SyncRequest,
        runs: Mapping[UUID, LockedRun],
        *,
        again: Sequence[Held],
        is_draining: bool,
    ) -> list[ClaimAnswer]:
        epochs = {grant.run_id: grant.epoch for grant in again}
        queued = [run_id for run_id in request.claims if _is_queued(runs.get(run_id))]
        # What a draining executor asks for stays queued, and the message goes back to the broker for others.
        if not is_draining:
            epochs |= run_store.claim_runs(connection, request.executor, queued, lease=self._config.lease)
        return [
            ClaimAnswer(run_id=run_id, epoch=epochs[run_id])
            if run_id in epochs
            else ClaimAnswer(run_id=run_id, refusal=_decide_refusal(runs.get(run_id)))
            for run_id in request.claims
        ]

    def _take_over(self, connection: Connection, executor: Executor) -> tuple[set[UUID], list[Lease]]:
        """What was taken over, and all leases on the executor's engine after it."""
        leases = run_store.list_leases_of_engine(connection, executor.engine_id)
        if not any(lease.is_expired or _is_of_earlier_boot(lease, executor) for lease in leases):
            return set(), leases
        taken = run_store.take_over_leases(
            connection, executor, lease=self._config.lease, settle=self._config.settle
        )
        return taken, run_store.list_leases_of_engine(connection, executor.engine_id)

    def _observe(self, executor: Executor, applied: _Applied) -> None:
        if applied.is_new:
            log.info(
                "executor_registered", executor_id=executor.id, engine_id=executor.engine_id, slots=executor.slots
            )
        for answer in applied.claims:
            CLAIMS.labels(answer.refusal or "granted").inc()
            run = applied.runs.get(answer.run_id)
            log.info(
                "run_claimed" if answer.epoch is not None else "claim_refused",
                run_id=str(answer.run_id),
                task_id=None if run is None else str(run.task_id),
                request_id=None if run is None else run.request_id,
                executor_id=executor.id,
                epoch=answer.epoch,
                refusal=answer.refusal,
            )
        for run_id in applied.taken:
            TAKEOVERS.inc()
            log.warning("run_taken_over", run_id=str(run_id), executor_id=executor.id)
        observe_started(applied.runs, [*applied.started, *_list_started_unnoticed(applied.closed)])
        observe_closed(applied.closed)


class _CachedPrefetch:
    """The images to pull ahead, at most a little old: every sync answers them."""

    def __init__(self, pool: Pool, *, ahead: timedelta) -> None:
        self._pool = pool
        self._ahead = ahead
        self._images: list[str] = []
        self._read_at = float("-inf")

    def read(self) -> list[str]:
        if time.monotonic() - self._read_at > _PREFETCH_SECONDS:
            self._read_at = time.monotonic()
            self._images = on_connection(
                self._pool,
                lambda connection: run_store.list_images_due_within(
                    connection, self._ahead, limit=_PREFETCH_IMAGES
                ),
            )
        return self._images


def _list_mentioned(request: SyncRequest) -> set[UUID]:
    mentioned = set(request.claims)
    mentioned.update(report.run_id for report in request.reports)
    mentioned.update(chunk.run_id for chunk in request.logs)
    return mentioned


def _list_moved_tasks(request: SyncRequest, applied: _Applied) -> set[UUID]:
    """Those that printed something, started or ended."""
    moved = {chunk.run_id for chunk in request.logs}
    moved.update(entry.run_id for entry in applied.started)
    moved.update(entry.run.run_id for entry in applied.closed)
    return {applied.runs[run_id].task_id for run_id in moved if run_id in applied.runs}


def _list_granted_before(request: SyncRequest, runs: Mapping[UUID, LockedRun]) -> list[Held]:
    """Claims that were granted to this very boot, whose answer got lost: what is granted twice is the same."""
    held = {entry.run_id for entry in request.held}
    return [
        Held(run_id=run_id, epoch=run.epoch)
        for run_id in request.claims
        if (run := runs.get(run_id)) is not None
        and run.status == RunStatus.CLAIMED
        and run_id not in held
        and (run.executor_id, run.boot_id) == (request.executor.id, request.executor.boot_id)
    ]


def _is_queued(run: LockedRun | None) -> bool:
    return run is not None and run.status == RunStatus.QUEUED and not run.is_deleted


def _decide_refusal(run: LockedRun | None) -> str:
    if run is None or run.is_deleted:
        return "unknown"
    if run.status == RunStatus.QUEUED:
        return "draining"
    return "cancelled" if run.status == RunStatus.CANCELLED else "not_queued"


def _apply_reports(
    connection: Connection, runs: Mapping[UUID, LockedRun], reports: Sequence[Report]
) -> tuple[list[bool], list[Moved], list[Closed]]:
    """Whether each report was accepted, and the runs that it started or closed."""
    accepted = [_is_accepted(report, runs.get(report.run_id)) for report in reports]
    live = [report for report in reports if _is_live(report, runs.get(report.run_id))]
    finished = {report.run_id: report for report in live if isinstance(report, Finished)}
    # What has started and ended since the last sync is written once.
    pending = [report for report in live if report.run_id not in finished]
    started = {report.run_id: report for report in pending if isinstance(report, Started)}
    prepared = {
        report.run_id: report
        for report in pending
        if isinstance(report, Prepared) and report.container_id is not None
    }
    run_store.name_containers(connection, list(prepared.values()))
    moved = run_store.start_runs(connection, list(started.values()))
    closed = close_runs(connection, [(runs[run_id], report) for run_id, report in finished.items()])
    return accepted, moved, closed


def _is_live(report: Report, run: LockedRun | None) -> bool:
    return run is not None and run.epoch == report.epoch and run.status in HELD_RUN


def _is_accepted(report: Report, run: LockedRun | None) -> bool:
    """A finished report that is sent again, because its answer got lost, is as good as the first time."""
    is_repeated = (
        isinstance(report, Finished)
        and run is not None
        and run.epoch == report.epoch
        and run.status in TERMINAL_RUN
    )
    return is_repeated or _is_live(report, run)


def _is_own(lease: Lease, executor: Executor) -> bool:
    return (lease.executor_id, lease.boot_id) == (executor.id, executor.boot_id)


def _is_of_earlier_boot(lease: Lease, executor: Executor) -> bool:
    return lease.executor_id == executor.id and lease.boot_id != executor.boot_id


def _list_adopted(request: SyncRequest, leases: Sequence[Lease]) -> list[Lease]:
    """Taken over, and not yet among what the executor says it holds: told again until it does."""
    held = {(entry.run_id, entry.epoch) for entry in request.held}
    return [
        lease
        for lease in leases
        if lease.adopted and _is_own(lease, request.executor) and (lease.run_id, lease.epoch) not in held
    ]


def _list_started_unnoticed(closed: Sequence[Closed]) -> list[Moved]:
    """Runs whose start was first heard of together with their end."""
    return [entry.moved for entry in closed if entry.run.started_at is None and entry.moved.started_at is not None]


def _to_answer(
    request: SyncRequest, applied: _Applied, *, prefetch: Sequence[str], lease: timedelta
) -> dict[str, Any]:
    finished = {report.run_id for report in request.reports if isinstance(report, Finished)}
    return {
        "claims": [_to_claim(answer, applied.specs) for answer in applied.claims],
        "reports": [
            {
                "runId": str(report.run_id),
                "epoch": report.epoch,
                "event": _EVENTS[type(report)],
                "accepted": accepted,
            }
            for report, accepted in zip(request.reports, applied.accepted, strict=True)
        ],
        "stop": [
            {"runId": str(entry.run_id), "epoch": entry.epoch, "reason": "cancelled"}
            for entry in applied.leases
            if entry.is_stopping and _is_own(entry, request.executor)
        ],
        "released": [
            {"runId": str(entry.run_id), "epoch": entry.epoch}
            for entry in request.held
            if entry.run_id not in applied.renewed and entry.run_id not in finished
        ],
        "adopt": [
            {
                "runId": str(entry.run_id),
                "epoch": entry.epoch,
                "wasRunning": entry.was_running,
                "task": _to_spec(applied.specs[entry.run_id]),
                "logs": _to_stored_output(applied.stored[entry.run_id]),
            }
            for entry in _list_adopted(request, applied.leases)
        ],
        "answers": [{"runId": str(run_id), "live": run_id in applied.live} for run_id in request.questions],
        "prefetch": list(prefetch),
        "draining": applied.is_draining,
        "leaseSeconds": lease.total_seconds(),
        "serverTime": format_time(applied.server_time),
    }


_EVENTS: dict[type[Report], str] = {Prepared: "preparing", Started: "started", Finished: "finished"}


def _to_stored_output(stored: StoredOutput) -> dict[str, int]:
    return {
        "nextSeq": stored.next_seq,
        "stdoutBytes": stored.stdout_bytes,
        "stderrBytes": stored.stderr_bytes,
    }


def _to_claim(answer: ClaimAnswer, specs: Mapping[UUID, TaskSpec]) -> dict[str, Any]:
    if answer.epoch is None:
        return {"runId": str(answer.run_id), "granted": False, "reason": answer.refusal}
    return {
        "runId": str(answer.run_id),
        "granted": True,
        "epoch": answer.epoch,
        "task": _to_spec(specs[answer.run_id]),
    }


def _to_spec(spec: TaskSpec) -> dict[str, Any]:
    return {
        "taskId": str(spec.task_id),
        "runId": str(spec.run_id),
        "userId": str(spec.user_id),
        "number": spec.number,
        "image": spec.image,
        "command": spec.command,
        "args": spec.args,
        "entrypoint": spec.entrypoint,
        "environment": spec.environment,
        "timeoutSeconds": spec.timeout_seconds,
        "stopGraceSeconds": spec.stop_grace_seconds,
        "cpus": spec.cpus,
        "memoryMb": spec.memory_mb,
        "pids": spec.pids,
        "network": spec.network,
        "scheduledAt": format_time(spec.scheduled_at),
        "requestId": spec.request_id,
    }
