"""Valid objects for tests; a call names only what matters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.executor import runtime as rt
from services.executor.container_options import ContainerSettings
from services.executor.held_run import HeldRun, lease_clock
from services.executor.output import Output
from services.executor.spec import TaskSpec, read_task_spec
from services.executor.tests.fake_scheduler import task_fields

BOOT_ID = "boot-1"


def make_spec(**changes: Any) -> TaskSpec:
    """From the scheduler's own form, so the names are those of the sync: `timeoutSeconds`, `memoryMb`."""
    return read_task_spec(task_fields(**changes))


def make_settings(**changes: Any) -> ContainerSettings:
    values: dict[str, Any] = {
        "instance": "test",
        "executor_id": "executor-1",
        "boot_id": BOOT_ID,
        "network": "test-tasks",
        "runtime": "runc",
        "user": "",
        "read_only_root": False,
    }
    return ContainerSettings(**(values | changes))


def make_run(spec: TaskSpec | None = None, *, epoch: int = 1, **changes: Any) -> HeldRun:
    values: dict[str, Any] = {
        "spec": spec or make_spec(),
        "epoch": epoch,
        "output": Output(on_pending=lambda: None),
        "renewed_at": lease_clock(),
    }
    return HeldRun(**(values | changes))


def make_state(**changes: Any) -> rt.ContainerState:
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "container_id": "c" * 64,
        "status": "exited",
        "exit_code": 0,
        "oom_killed": False,
        "error": "",
        "started_at": now - timedelta(seconds=1),
        "finished_at": now,
        "image_id": "sha256:1",
        "labels": {},
    }
    return rt.ContainerState(**(values | changes))
