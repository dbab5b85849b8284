"""What users do with one task: create, get, cancel, delete and rerun it, and look at its runs and logs."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from libs.common import failpoints
from libs.common.clock import utc_now
from libs.common.errors import Forbidden, Invalid
from libs.common.postgres import Connection, Pool, in_transaction, on_connection
from libs.common.tokens import Identity
from services.scheduler import store
from services.scheduler.idempotency import Answer, Once
from services.scheduler.images import is_image_allowed
from services.scheduler.line import BEYOND, Line, Snapshot, waits_in_line
from services.scheduler.metrics import TASKS_CREATED
from services.scheduler.output import decode_result
from services.scheduler.quotas import Quotas
from services.scheduler.states import TERMINAL_TASK, RunStatus, TaskStatus
from services.scheduler.store import NewTask, Stopped, Task
from services.scheduler.users_client import UsersClient
from services.scheduler.visibility import may_see, no_such_task, require_visible
from services.scheduler.waiting import Waiting, decide_waiting

log = structlog.get_logger()

PAST_TOLERANCE = timedelta(seconds=60)
FUTURE_LIMIT = timedelta(days=5 * 366)
# The dispatch loop looks by itself every second, so only a task that is due sooner has to wake it.
WAKE_WITHIN = timedelta(seconds=1.5)

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

    `wake_dispatch` tells the dispatch loop that something is due, `hint_stop` the named executors that they have
    something to stop; neither may block. `require_room` raises Unavailable when there is none for new tasks.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        users: UsersClient,
        limits: OperatorLimits,
        quotas: Quotas,
        line: Line,
        wake_dispatch: Callable[[], None],
        require_room: Callable[[], None],
        hint_stop: Callable[[Collection[str]], None],
    ) -> None:
        self._pool = pool
        self._users = users
        self._limits = limits
        self._quotas = quotas
        self._wake_dispatch = wake_dispatch
        self._require_room = require_room
        self._hint_stop = hint_stop
        self._line = line

    def create(self, identity: Identity, fields: dict[str, Any], *, request_id: str, once: OnceCreated) -> Answer:
        """Insert the task as pending and wake the dispatch loop when it is due.

        Raises Invalid (limits, unknown userId), Forbidden (userId of somebody else, by a non-admin),
        Unavailable (no room for it) and TooManyRequests (the owner's quota).
        """
        if answer := once.find(self._pool):
            return answer
        new = self.prepare(identity, fields, request_id=request_id)
        return self.insert_once(once, [new])

    def rerun(self, identity: Identity, task_id: UUID, *, request_id: str, once: OnceCreated) -> Answer:
        """A new task of the same owner with the same definition, due now, whatever became of the first one."""
        if answer := once.find(self._pool):
            return answer
        task = on_connection(self._pool, lambda connection: store.find_task(connection, task_id))
        if task is None or not may_see(identity, task.user_id):
            raise no_such_task()
        if not self.has_owner(identity, task.user_id):
            raise Invalid(
                "The task can't be run again: its user was deleted.", errors={"userId": ["There is no such user."]}
            )
        new = self.prepare_rerun(task, new_id=uuid.uuid4(), request_id=request_id)
        return self.insert_once(once, [new])

    def has_owner(self, identity: Identity, user_id: UUID) -> bool:
        """Whether the user of a task is still there: tasks outlive theirs."""
        return user_id == identity.user_id or self._users.exists(user_id)

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

    def insert_once(self, once: OnceCreated, new: Sequence[NewTask]) -> Answer:
        """Insert the tasks, and announce them when they are committed. Raises as `insert`."""
        created: list[Task] = []
        line = self._line.read()

        def work(connection: Connection) -> list[dict[str, Any]]:
            failpoints.reach("task_not_committed")
            created[:] = self.insert(connection, new)
            return [_to_view(task, _decide_waiting(task, line)) for task in created]

        answer = once.run(self._pool, work)
        failpoints.reach("task_committed")
        if not answer.is_replayed:
            self.announce(len(created), due_at=min(task.due_at for task in created))
            if len(created) == 1:
                (task,) = created
                log.info("task_created", task_id=str(task.id), user_id=str(task.user_id), image=task.image)
        return answer

    def insert(self, connection: Connection, new: Sequence[NewTask]) -> list[Task]:
        """The one way in for new tasks. Raises Unavailable (no room) and TooManyRequests (an owner's quota)."""
        self._require_room()
        created: dict[UUID, list[UUID]] = {}
        for task in new:
            created.setdefault(task.user_id, []).append(task.id)
        with self._quotas.admit(connection, created):
            return store.create_tasks(connection, new)

    def announce(self, count: int, *, due_at: datetime) -> None:
        """So many tasks were created, and the first of them is due then. Call after the commit."""
        if due_at - utc_now() <= WAKE_WITHIN:
            self._wake_dispatch()
        TASKS_CREATED.inc(count)
        if count > 1:
            log.info("tasks_created", tasks=count)

    def get(self, identity: Identity, task_id: UUID) -> dict[str, Any]:
        task = on_connection(self._pool, lambda connection: store.find_task(connection, task_id))
        if task is None or not may_see(identity, task.user_id):
            raise no_such_task()
        return self._view_in_line(task)

    def cancel(self, identity: Identity, task_id: UUID) -> tuple[dict[str, Any], bool]:
        """Stop the task. Returns it and whether that changed anything: a terminal task stays as it is."""

        def work(connection: Connection) -> tuple[Task | None, bool, Stopped]:
            is_live = _lock_own(connection, identity, task_id).status not in TERMINAL_TASK
            stopped = store.stop_locked_tasks(connection, [task_id])
            return store.find_task(connection, task_id), is_live, stopped

        task, is_live, stopped = in_transaction(self._pool, work)
        assert task is not None, "locked, then gone"  # noqa: S101
        self._hint_stop(stopped.executor_ids)
        if is_live:
            log.info("task_cancel_requested", task_id=str(task_id))
        return self._view(task), is_live

    def cancel_all(self, task_ids: Sequence[UUID], user_id: UUID | None) -> int:
        """Stop those tasks that are this user's, or anybody's when it is None. Returns how many that changed."""

        def work(connection: Connection) -> Stopped:
            live = store.lock_live_tasks(connection, task_ids, user_id)
            return store.stop_locked_tasks(connection, live)

        stopped = in_transaction(self._pool, work)
        self._hint_stop(stopped.executor_ids)
        return stopped.tasks

    def delete(self, identity: Identity, task_id: UUID) -> None:
        """Stop the task if it runs, and remove it: from here on it is unknown to the API."""

        def work(connection: Connection) -> Stopped:
            _lock_own(connection, identity, task_id)
            stopped = store.stop_locked_tasks(connection, [task_id])
            store.remove_locked_task(connection, task_id)
            return stopped

        self._hint_stop(in_transaction(self._pool, work).executor_ids)
        log.info("task_deleted", task_id=str(task_id))

    def list_runs(self, identity: Identity, task_id: UUID) -> list[store.Run]:

        def work(connection: Connection) -> list[store.Run]:
            require_visible(connection, identity, task_id)
            return store.list_runs(connection, task_id)

        return on_connection(self._pool, work)

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
        line = self._line.read()
        return [_to_view(task, _decide_waiting(task, line)) for task in tasks]

    def _view(self, task: Task) -> dict[str, Any]:
        return _to_view(task, _decide_waiting(task, self._line.read()))

    def _view_in_line(self, task: Task) -> dict[str, Any]:
        """With its place in the line, which is counted: for who asks for one task."""
        line = self._line.read()
        if task.due_at > utc_now() or not waits_in_line(task, line.get_hold(task)):
            return _to_view(task, _decide_waiting(task, line))
        ahead = self._line.count_ahead(task)
        waiting = _decide_waiting(task, line, ahead=ahead)
        return _to_view(task, waiting, position=min(ahead + 1, BEYOND))


def _lock_own(connection: Connection, identity: Identity, task_id: UUID) -> store.LockedTask:
    task = store.lock_task(connection, task_id)
    if task is None or not may_see(identity, task.user_id):
        raise no_such_task()
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
    resources, retry = fields["resources"], fields["retry"]
    concurrency = fields["concurrency"] or {"key": "", "limit": 0}
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
        max_attempts=retry["max_attempts"],
        backoff_seconds=retry["backoff_seconds"],
        max_backoff_seconds=retry["max_backoff_seconds"],
        retry_exit_codes=retry["on_exit_codes"],
        pool=fields["pool"],
        concurrency_key=concurrency["key"],
        concurrency_limit=concurrency["limit"],
        queue_ttl_seconds=fields["queue_ttl_seconds"],
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


def _to_concurrency(task: Task) -> dict[str, Any] | None:
    return {"key": task.concurrency_key, "limit": task.concurrency_limit} if task.concurrency_key else None


def _decide_waiting(task: Task, line: Snapshot, *, ahead: int | None = None) -> Waiting | None:
    if task.status not in (TaskStatus.PENDING, TaskStatus.QUEUED):
        return None
    return decide_waiting(
        status=TaskStatus(task.status),
        due_at=task.due_at,
        attempts=task.attempts,
        max_attempts=task.max_attempts,
        lost_count=task.lost_count,
        run_status=None if task.run_status is None else RunStatus(task.run_status),
        is_published=bool(task.run_published),
        is_pulling=bool(task.run_pulling),
        capacity=line.get_capacity(task.pool),
        hold=line.get_hold(task),
        ahead=ahead,
        now=utc_now(),
    )


def _to_view(task: Task, waiting: Waiting | None, *, position: int | None = None) -> dict[str, Any]:
    return {
        "id": task.id,
        "user_id": task.user_id,
        "schedule_id": task.schedule_id,
        "status": task.status,
        "reason": task.reason,
        "waiting": waiting,
        "position": position,
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
        "retry": {
            "max_attempts": task.max_attempts,
            "backoff_seconds": task.backoff_seconds,
            "max_backoff_seconds": task.max_backoff_seconds,
            "on_exit_codes": task.retry_exit_codes,
        },
        "queue_ttl_seconds": task.queue_ttl_seconds,
        "concurrency": _to_concurrency(task),
        "pool": task.pool,
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
