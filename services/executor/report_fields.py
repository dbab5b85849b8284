"""Reports and output as the scheduler's sync takes them. Pure."""

from __future__ import annotations

import base64
from typing import Any

from libs.common.clock import format_time
from services.executor.held_run import HeldRun, StartedReport
from services.executor.output import Chunk


def chunk_fields(run: HeldRun, chunk: Chunk) -> dict[str, Any]:
    run_id, epoch = run.key
    return {
        "runId": run_id,
        "epoch": epoch,
        "seq": chunk.seq,
        "stream": chunk.stream,
        "at": format_time(chunk.at),
        "data": base64.b64encode(chunk.data).decode(),
    }


def started_fields(run: HeldRun, report: StartedReport) -> dict[str, Any]:
    run_id, epoch = run.key
    return {
        "runId": run_id,
        "epoch": epoch,
        "event": "started",
        "containerId": report.container_id,
        "startedAt": format_time(report.started_at),
        "imageDigest": None,
        "pulledSeconds": report.pulled_seconds,
    }


def unusable_fields(run_id: str, epoch: int) -> dict[str, Any]:
    """Of a run whose task can't be read, so that no container of it was created."""
    return {
        "runId": run_id,
        "epoch": epoch,
        "event": "finished",
        "outcome": "failed",
        "reason": "engine_error",
        "errorMsg": "The executor can't read this task: its version isn't the scheduler's. Ask the operator.",
    }


def finished_fields(run: HeldRun) -> dict[str, Any]:
    run_id, epoch = run.key
    report = run.finished
    assert report is not None  # noqa: S101  Only runs with a report get here.
    outcome = report.outcome
    return {
        "runId": run_id,
        "epoch": epoch,
        "event": "finished",
        "outcome": outcome.status,
        "reason": outcome.reason,
        "exitCode": outcome.exit_code,
        "errorMsg": outcome.error_msg,
        "result": None if report.result is None else base64.b64encode(report.result).decode(),
        "startedAt": format_time(report.started_at) if report.started_at else None,
        "finishedAt": format_time(report.finished_at) if report.finished_at else None,
        "imageDigest": report.image_digest,
        "maxMemoryMb": report.usage.max_memory_mb,
        "cpuSeconds": report.usage.cpu_seconds,
        "pulledSeconds": report.pulled_seconds,
        "containerId": report.container_id,
    }
