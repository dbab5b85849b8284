"""What users do with one task: create, get, cancel, delete and rerun it, and look at its runs and logs."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from libs.common.clock import utc_now
from libs.common.errors import Forbidden, Invalid, NotFound
from libs.common.postgres import Connection, Pool, in_transaction, on_connection
from libs.common.tokens import Identity
from services.scheduler import store
from services.scheduler.idempotency import Answer, Once
from services.scheduler.images import is_image_allowed
from services.scheduler.metrics import TASKS_CREATED
from services.scheduler.output import decode_result, keep_last_lines
from services.scheduler.states import TERMINAL_TASK, LogStream, RunStatus, TaskStatus
from services.scheduler.store import NewTask, Task
from services.scheduler.users_client import UsersClient
from services.scheduler.waiting import Capacity, Waiting, decide_waiting

log = structlog.get_logger()

PAST_TOLERANCE = timedelta(seconds=60)
FUTURE_LIMIT = timedelta(days=5 * 366)
# The dispatch loop looks by itself every second, so only a task that is due sooner has to wake it.
WAKE_WITHIN = timedelta(seconds=1.5)

_CAPACITY_SECONDS = 1.0


# Answers with the tasks that were created, as the API shows them.
OnceCreated = Once[list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class OperatorLimits:
    """What this system's operator allows at most. No globs allow every image."""

    cpus: float
    memory_mb: int
    images: Sequence[str]


class Tasks:
    """The use cases of the task API. Every method that names a task raises NotFound for another user's.

    `wake_dispatch` tells the dispatch loop that something is due; it must not block.
    """

    def __init__(
        self, *, pool: Pool, users: UsersClient, limits: OperatorLimits, wake_dispatch: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._users = users
        self._limits = limits
        self._wake_dispatch = wake_dispatch
        self._capacity = _CachedCapacity(pool)

    def create(self, identity: Identity, fields: dict[str, Any], *, request_id: str, once: OnceCreated) -> Answer:
        """Insert the task as pending and wake the dispatch loop when it is due.

        Raises Invalid (limits, unknown userId) and Forbidden (userId of somebody else, by a non-admin).
        """
        if answer := once.find(self._pool):
            return answer
        new = self.prepare(identity, fields, request_id=request_id)
        return self.insert_once(once, lambda _connection: [new])

    def rerun(self, identity: Identity, task_id: UUID, *, request_id: str, once: OnceCreated) -> Answer:
        """A new task of the same owner with the same definition, due now, whatever became of the first one."""
        if answer := once.find(self._pool):
            return answer
        new_id = uuid.uuid4()

        def make(connection: Connection) -> list[NewTask]:
            task = store.find_task(connection, task_id)
            if task is None or not _may_see(identity, task.user_id):
                raise _no_such_task()
            return [self.prepare_rerun(task, new_id=new_id, request_id=request_id)]

        return self.insert_once(once, make)

    def prepare(self, identity: Identity, fields: dict[str, Any], *, request_id: str) -> NewTask:
        """The task that a request's fields define, checked against all limits. Raises as `create`."""
        owner = self._decide_owner(identity, fields["user_id"])
        _check_scheduled_at(fields["scheduled_at"], now=utc_now())
        return _to_new_task(fields, owner=owner, limits=self._limits, request_id=request_id)

    def prepare_rerun(self, task: Task, *, new_id: UUID, request_id: str) -> NewTask:
        """The same definition as a task of its own. Invalid when the operator's limits forbid it by now."""
        definition = {field.name: getattr(task, field.name) for field in dataclasses.fields(NewTask)}
        new = NewTask(**{**definition, "id": new_id, "request_id": request_id, "scheduled_at": None})
        errors = _check_operator_limits(new, self._limits)
        if errors:
            raise Invalid("The task can't be run again; see errors.", errors=errors)
        return new

    def insert_once(self, once: OnceCreated, make: Callable[[Connection], Sequence[NewTask]]) -> Answer:
        """The one way in for new tasks: insert what `make` gives, and announce it when it is committed."""
        created: list[Task] = []
        # It may have to be read from the database, and that is better done before another connection is held.
        self._capacity.read()

        def work(connection: Connection) -> list[dict[str, Any]]:
            created[:] = store.create_tasks(connection, make(connection))
            return self.views(created)

        answer = once.run(self._pool, work)
        if not answer.is_replayed:
            self.announce(len(created), due_at=min(task.due_at for task in created))
            if len(created) == 1:
                (task,) = created
                log.info("task_created", task_id=str(task.id), user_id=str(task.user_id), image=task.image)
        return answer

    def announce(self, count: int, *, due_at: datetime) -> None:
        """So many tasks were created, and the first of them is due then. Call after the commit."""
        if due_at - utc_now() <= WAKE_WITHIN:
            self._wake_dispatch()
        TASKS_CREATED.inc(count)
        if count > 1:
            log.info("tasks_created", tasks=count)

    def get(self, identity: Identity, task_id: UUID) -> dict[str, Any]:
        task = on_connection(self._pool, lambda connection: store.find_task(connection, task_id))
        if task is None or not _may_see(identity, task.user_id):
            raise _no_such_task()
        return self._view(task)

    def cancel(self, identity: Identity, task_id: UUID) -> tuple[dict[str, Any], bool]:
        """Stop the task. Returns it and whether that changed anything: a terminal task stays as it is."""

        def work(connection: Connection) -> tuple[Task | None, bool]:
            status = _lock_own(connection, identity, task_id).status
            is_live = status not in TERMINAL_TASK
            if is_live:
                store.stop_locked_tasks(connection, [task_id])
            return store.find_task(connection, task_id), is_live

        task, is_live = in_transaction(self._pool, work)
        assert task is not None, "locked, then gone"  # noqa: S101
        if is_live:
            log.info("task_cancel_requested", task_id=str(task_id))
        return self._view(task), is_live

    def delete(self, identity: Identity, task_id: UUID) -> None:
        """Stop the task if it runs, and remove it: from here on it is unknown to the API."""

        def work(connection: Connection) -> None:
            if _lock_own(connection, identity, task_id).status not in TERMINAL_TASK:
                store.stop_locked_tasks(connection, [task_id])
            store.remove_locked_task(connection, task_id)

        in_transaction(self._pool, work)
        log.info("task_deleted", task_id=str(task_id))

    def list_runs(self, identity: Identity, task_id: UUID) -> list[store.Run]:

        def work(connection: Connection) -> list[store.Run]:
            _require_visible(connection, identity, task_id)
            return store.list_runs(connection, task_id)

        return on_connection(self._pool, work)

    def read_log(
        self, identity: Identity, task_id: UUID, *, attempt: int | None, stream: str, tail: int | None
    ) -> bytes:
        """What that attempt (the last one when None) printed; empty before the first."""
        streams = list(LogStream) if stream == "both" else [LogStream(stream)]

        def work(connection: Connection) -> bytes:
            _require_visible(connection, identity, task_id)
            run_id = store.find_run_of_attempt(connection, task_id, attempt)
            if run_id is None and attempt is not None:
                raise NotFound(f"The task has no attempt {attempt}.")
            return b"" if run_id is None else store.read_log(connection, run_id, streams)

        data = on_connection(self._pool, work)
        return data if tail is None else keep_last_lines(data, tail)

    def _decide_owner(self, identity: Identity, user_id: UUID | None) -> UUID:
        if user_id is None or user_id == identity.user_id:
            return identity.user_id
        if not identity.is_admin:
            raise Forbidden("Only an admin creates tasks for other users; leave userId out.", code="role_lacking")
        if not self._users.exists(user_id):
            raise Invalid(
                "The request has invalid fields; see errors.", errors={"userId": ["There is no such user."]}
            )
        return user_id

    def views(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The tasks as the API shows them."""
        return [self._view(task) for task in tasks]

    def _view(self, task: Task) -> dict[str, Any]:
        return _to_view(task, self._decide_waiting(task))

    def _decide_waiting(self, task: Task) -> Waiting | None:
        if task.status not in (TaskStatus.PENDING, TaskStatus.QUEUED):
            return None
        return decide_waiting(
            status=TaskStatus(task.status),
            due_at=task.due_at,
            lost_count=task.lost_count,
            run_status=None if task.run_status is None else RunStatus(task.run_status),
            is_published=bool(task.run_published),
            capacity=self._capacity.read(),
            now=utc_now(),
        )


class _CachedCapacity:
    """The executors' capacity, at most a second old: every waiting task's answer needs it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._capacity = Capacity(0, 0, 0)
        self._read_at = float("-inf")

    def read(self) -> Capacity:
        if time.monotonic() - self._read_at > _CAPACITY_SECONDS:
            self._capacity = on_connection(self._pool, store.read_capacity)
            self._read_at = time.monotonic()
        return self._capacity


def _may_see(identity: Identity, owner: UUID) -> bool:
    return identity.is_admin or identity.user_id == owner


def _require_visible(connection: Connection, identity: Identity, task_id: UUID) -> None:
    owner = store.find_owner(connection, task_id)
    if owner is None or not _may_see(identity, owner):
        raise _no_such_task()


def _no_such_task() -> NotFound:
    return NotFound("There is no such task.")


def _lock_own(connection: Connection, identity: Identity, task_id: UUID) -> store.LockedTask:
    task = store.lock_task(connection, task_id)
    if task is None or not _may_see(identity, task.user_id):
        raise _no_such_task()
    return task


def _check_scheduled_at(scheduled_at: datetime | None, *, now: datetime) -> None:
    if scheduled_at is None:
        return
    message = None
    if scheduled_at < now - PAST_TOLERANCE:
        message = "Must not be more than 60 s in the past."
    elif scheduled_at > now + FUTURE_LIMIT:
        message = "Must not be more than 5 years ahead."
    if message:
        raise Invalid("The request has invalid fields; see errors.", errors={"scheduledAt": [message]})


def _to_new_task(fields: dict[str, Any], *, owner: UUID, limits: OperatorLimits, request_id: str) -> NewTask:
    resources = fields["resources"]
    new = NewTask(
        id=uuid.uuid4(),
        user_id=owner,
        image=fields["image"],
        command=fields["command"],
        args=fields["args"],
        entrypoint=fields["entrypoint"],
        environment=fields["environment"],
        scheduled_at=fields["scheduled_at"],
        name=fields["name"],
        labels=fields["labels"],
        priority=fields["priority"],
        timeout_seconds=fields["timeout_seconds"],
        stop_grace_seconds=fields["stop_grace_seconds"],
        cpus=resources.get("cpus", min(1.0, limits.cpus)),
        memory_mb=resources.get("memory_mb", min(256, limits.memory_mb)),
        pids=resources["pids"],
        network=fields["network"],
        on_executor_lost=fields["on_executor_lost"],
        request_id=request_id,
    )
    errors = _check_operator_limits(new, limits)
    if errors:
        raise Invalid("The request has invalid fields; see errors.", errors=errors)
    return new


def _check_operator_limits(new: NewTask, limits: OperatorLimits) -> dict[str, list[str]]:
    resources = []
    if new.cpus > limits.cpus:
        resources.append(f"cpus: This system allows at most {limits.cpus:g} cores a task.")
    if new.memory_mb > limits.memory_mb:
        resources.append(f"memoryMb: This system allows at most {limits.memory_mb} MiB a task.")
    errors = {"resources": resources} if resources else {}
    if not is_image_allowed(new.image, limits.images):
        errors["image"] = [f"This system allows only these images: {', '.join(limits.images)}."]
    return errors


def _to_view(task: Task, waiting: Waiting | None) -> dict[str, Any]:
    return {
        "id": task.id,
        "user_id": task.user_id,
        "schedule_id": task.schedule_id,
        "status": task.status,
        "reason": task.reason,
        "waiting": waiting,
        "name": task.name,
        "labels": task.labels,
        "image": task.image,
        "command": task.command,
        "args": task.args,
        "entrypoint": task.entrypoint,
        "environment": task.environment,
        "scheduled_at": task.scheduled_at,
        "timeout_seconds": task.timeout_seconds,
        "stop_grace_seconds": task.stop_grace_seconds,
        "priority": task.priority,
        "resources": {"cpus": task.cpus, "memory_mb": task.memory_mb, "pids": task.pids},
        "network": task.network,
        "on_executor_lost": task.on_executor_lost,
        "result": decode_result(task.result),
        "error_msg": task.error_msg,
        "exit_code": task.exit_code,
        "attempts": task.attempts,
        "created_at": task.created_at,
        "queued_at": task.queued_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "updated_at": task.updated_at,
    }
