"""Many tasks at a time: a batch is created, and tasks are cancelled or rerun by their ids or by a filter."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from libs.common.clock import utc_now
from libs.common.errors import Invalid
from libs.common.postgres import Connection, Pool, on_connection
from libs.common.tokens import Identity
from services.scheduler import list_store, store
from services.scheduler.idempotency import Answer, Once
from services.scheduler.lists import BEFORE_ALL, decide_scope, to_filter
from services.scheduler.store import NewTask, Task
from services.scheduler.tasks import OnceCreated, Tasks

log = structlog.get_logger()

# What one request may change, so that it ends well within the time that the gateway waits for its answer.
MOST_MATCHED = 10_000
# Tasks that one transaction locks, so that executors' reports about them don't wait long.
CANCEL_CHUNK = 500
# Tasks that are in memory at a time, each of up to a megabyte.
RERUN_CHUNK = 50


@dataclass(frozen=True, slots=True)
class Counts:
    """`matched` tasks were meant; `changed` of them were cancelled, or run again."""

    matched: int
    changed: int


class BulkTasks:
    """Users reach their own tasks; admins everybody's by id, and their own or one user's by a filter."""

    def __init__(self, *, pool: Pool, tasks: Tasks) -> None:
        self._pool = pool
        self._tasks = tasks

    def create(
        self, identity: Identity, tasks: Sequence[Mapping[str, Any]], *, request_id: str, once: OnceCreated
    ) -> Answer:
        """All of the tasks or none, in one statement. Raises as for one, Invalid for all invalid ones at once."""
        if answer := once.find(self._pool):
            return answer
        new = self._prepare_all(identity, tasks, request_id)
        return self._tasks.insert_once(once, new)

    def cancel(self, identity: Identity, body: Mapping[str, Any]) -> Counts:
        """Stop each task as its own cancel would. Tasks that have ended, or are being stopped, don't change."""
        user_id, task_ids = self._select(identity, body)
        changed = 0
        for chunk in _chunks(task_ids, CANCEL_CHUNK):
            changed += self._tasks.cancel_all(chunk, user_id)
        log.info("tasks_cancel_requested", matched=len(task_ids), changed=changed)
        return Counts(len(task_ids), changed)

    def rerun(self, identity: Identity, body: Mapping[str, Any], *, request_id: str, once: Once[Counts]) -> Answer:
        """A new task for each, as its own rerun would make, all or none.

        Tasks of deleted users, and those that the operator's limits don't allow any more, are left out.
        """
        if answer := once.find(self._pool):
            return answer
        _, task_ids = self._select(identity, body)
        owners = on_connection(self._pool, lambda connection: store.list_owners(connection, task_ids))
        present = {user_id for user_id in owners if self._tasks.has_owner(identity, user_id)}
        new_ids = {task_id: uuid.uuid4() for task_id in task_ids}
        created = 0

        def work(connection: Connection) -> Counts:
            nonlocal created
            created = 0
            with connection.transaction():
                for chunk in _chunks(task_ids, RERUN_CHUNK):
                    tasks = [task for task in store.find_tasks(connection, chunk) if task.user_id in present]
                    again = self._prepare_reruns(tasks, new_ids, request_id)
                    created += len(self._tasks.insert(connection, again))
            return Counts(len(task_ids), created)

        answer = once.run(self._pool, work)
        if created and not answer.is_replayed:
            self._tasks.announce(created, due_at=utc_now())
        return answer

    def _prepare_all(
        self, identity: Identity, tasks: Sequence[Mapping[str, Any]], request_id: str
    ) -> list[NewTask]:
        new: list[NewTask] = []
        # As errors of a schema are written: the place, then the field.
        messages: list[str] = []
        for place, fields in enumerate(tasks):
            try:
                new.append(self._tasks.prepare(identity, dict(fields), request_id=request_id))
            except Invalid as error:
                for field, texts in (error.errors or {}).items():
                    messages += [f"{place}.{field}: {text}" for text in texts]
        if messages:
            raise Invalid("The request has invalid fields; see errors.", errors={"tasks": messages})
        return new

    def _prepare_reruns(
        self, tasks: Sequence[Task], new_ids: Mapping[UUID, UUID], request_id: str
    ) -> list[NewTask]:
        allowed = []
        for task in tasks:
            try:
                allowed.append(self._tasks.prepare_rerun(task, new_id=new_ids[task.id], request_id=request_id))
            except Invalid:
                log.info("rerun_not_allowed", task_id=str(task.id))
        return allowed

    def _select(self, identity: Identity, body: Mapping[str, Any]) -> tuple[UUID | None, list[UUID]]:
        """Whose tasks may be meant (None: everybody's), and the ids of those that are."""
        if body["ids"] is not None:
            user_id = None if identity.is_admin else identity.user_id
            ids = list(dict.fromkeys(body["ids"]))
            return user_id, on_connection(
                self._pool, lambda connection: store.list_own_tasks(connection, ids, user_id)
            )
        # An admin who doesn't say whose tasks are meant has not thought of everybody's.
        owner = decide_scope(identity, body["filter"]["user_id"]) or identity.user_id
        wanted = to_filter(body["filter"], user_id=owner)
        found = on_connection(
            self._pool,
            lambda connection: list_store.find_page(connection, wanted, before=BEFORE_ALL, limit=MOST_MATCHED + 1),
        )
        if len(found) > MOST_MATCHED:
            raise Invalid(
                f"The filter matches more than {MOST_MATCHED} tasks, and nothing was changed. Narrow it, for "
                "example by since and until, and send several requests.",
                code="too_many_matched",
                errors={"filter": [f"Must not match more than {MOST_MATCHED} tasks."]},
            )
        return owner, [one.id for one in found]


def _chunks(task_ids: Sequence[UUID], size: int) -> Iterator[Sequence[UUID]]:
    for start in range(0, len(task_ids), size):
        yield task_ids[start : start + size]
