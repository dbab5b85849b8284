"""One request of the sync: what an executor says and asks, within the size that the scheduler takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from libs.common.topology import DEFAULT_POOL
from services.executor.held_run import HeldRun, StartedReport, lease_clock
from services.executor.output import CHUNK_BYTES
from services.executor.report_fields import chunk_fields, finished_fields, started_fields, unusable_fields
from services.executor.scheduler_client import JsonObject

# A request stays below 1 MiB, the services' limit on a body: base64 makes four bytes of three.
OUTPUT_BUDGET_BYTES = 5 * CHUNK_BYTES
RESULTS_BUDGET_BYTES = 288 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: `boot_id` is new with every start of the process."""

    executor_id: str
    boot_id: str
    engine_id: str
    host: str
    slots: int
    pools: Sequence[str] = (DEFAULT_POOL,)


@dataclass(frozen=True, slots=True)
class Grant:
    """What became of a claim: `run` is None when the run isn't to be had, and `refusal` says why."""

    run: HeldRun | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One question. `on_answer` is called once, in the sync's thread or at once, and must not block."""

    run_id: UUID
    on_answer: Callable[[Grant], None]


@dataclass(frozen=True, slots=True)
class Request:
    sent_at: float
    claims: Sequence[Claim]
    held: Sequence[HeldRun]
    started: Sequence[tuple[HeldRun, StartedReport]]
    finished: Sequence[HeldRun]
    unusable: Sequence[tuple[str, int]]
    questions: Sequence[str]
    body: JsonObject


def build_request(
    identity: Identity,
    *,
    claims: Sequence[Claim],
    held: Sequence[HeldRun],
    unusable: Sequence[tuple[str, int]],
    questions: Sequence[str],
    now: float,
) -> Request:
    """With as much of the output of the runs as fits, which is taken out of them. `now` is monotonic."""
    logs = _take_output(held)
    finished = _take_finished(held)
    # The report itself ends a run's lease: there is nothing to renew.
    ending = {run.key for run in finished}
    started = [(run, run.started) for run in held if run.started is not None and run.started.due <= now]
    body = {
        "executor": {
            "id": identity.executor_id,
            "bootId": identity.boot_id,
            "engineId": identity.engine_id,
            "host": identity.host,
            "slots": identity.slots,
            "pools": list(identity.pools),
            "running": sum(run.finished is None for run in held),
        },
        "claims": [{"runId": str(claim.run_id)} for claim in claims],
        "held": [
            {"runId": run.key[0], "epoch": run.epoch, "pulling": run.pulling}
            for run in held
            if run.key not in ending
        ],
        "reports": [
            *(started_fields(run, report) for run, report in started),
            *(_drop_nothings(finished_fields(run)) for run in finished),
            *(unusable_fields(run_id, epoch) for run_id, epoch in unusable),
        ],
        "logs": logs,
        "questions": [{"runId": run_id} for run_id in questions],
    }
    return Request(
        sent_at=lease_clock(),
        claims=claims,
        held=held,
        started=started,
        finished=finished,
        unusable=unusable,
        questions=questions,
        body=body,
    )


def _drop_nothings(fields: JsonObject) -> JsonObject:
    """What a report lacks is null to the scheduler, said or not."""
    return {name: value for name, value in fields.items() if value is not None}


def _take_output(held: Sequence[HeldRun]) -> list[dict[str, Any]]:
    budget = OUTPUT_BUDGET_BYTES
    taken: list[dict[str, Any]] = []
    # What ends goes first, so that its report doesn't wait for the output of the others.
    for run in sorted(held, key=lambda each: each.finished is None):
        for chunk in run.output.take(budget):
            budget -= len(chunk.data)
            taken.append(chunk_fields(run, chunk))
    return taken


def _take_finished(held: Sequence[HeldRun]) -> list[HeldRun]:
    """Those whose output is all in this request or stored already, within the budget, but at least one."""
    ready = [run for run in held if run.finished is not None and run.output.drained]
    taken: list[HeldRun] = []
    size = 0
    for run in ready:
        size += len(run.finished.result or b"") if run.finished else 0
        if taken and size > RESULTS_BUDGET_BYTES:
            break
        taken.append(run)
    return taken
