"""What users look for among their tasks: lists, page by page, and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from libs.common.errors import Forbidden
from libs.common.paging import Cursor, Page, to_page
from libs.common.postgres import Connection, Pool, on_connection
from libs.common.tokens import Identity
from services.scheduler import list_store, store
from services.scheduler.list_store import TaskFilter
from services.scheduler.store import Task
from services.scheduler.tasks import Tasks

_LONG_AGO = datetime(2, 1, 1, tzinfo=UTC)
_FAR_AHEAD = datetime(9998, 1, 1, tzinfo=UTC)
# Many requests at a time have to fit into the process's memory, each with its rows and its answer.
MOST_PAGE_BYTES = 2 * 1024 * 1024
BEFORE_ALL = Cursor(_FAR_AHEAD, UUID(int=2**128 - 1))


class TaskLists:
    """A user sees their own tasks; an admin everybody's, or those of one user."""

    def __init__(self, *, pool: Pool, tasks: Tasks) -> None:
        self._pool = pool
        self._tasks = tasks

    def list_page(self, identity: Identity, query: Mapping[str, Any]) -> Page:
        """Newest first. A page of large tasks is shorter than its limit; its cursor says if there are more."""
        wanted = to_filter(query, user_id=decide_scope(identity, query["user_id"]))
        before = query["cursor"] or BEFORE_ALL

        def work(connection: Connection) -> tuple[Sequence[Task], str | None]:
            # One more than asked for tells whether there is a next page.
            found = list_store.find_page(connection, wanted, before=before, limit=query["limit"] + 1)
            fitting = list_store.count_fitting_tasks(
                connection, [task.id for task in found], most_bytes=MOST_PAGE_BYTES
            )
            page = to_page(found, limit=min(query["limit"], fitting))
            return store.find_tasks(connection, [task.id for task in page.items]), page.next_cursor

        tasks, next_cursor = on_connection(self._pool, work)
        return Page(self._tasks.views(tasks), next_cursor)

    def count(self, identity: Identity, query: Mapping[str, Any]) -> dict[str, Any]:
        """How many tasks there are of each status."""
        user_id = decide_scope(identity, query["user_id"])
        return {
            "by_status": on_connection(self._pool, lambda connection: list_store.count_tasks(connection, user_id))
        }


def to_filter(query: Mapping[str, Any], *, user_id: UUID | None) -> TaskFilter:
    """The filter that the fields of a query, or of a bulk request's body, say."""
    return TaskFilter(
        user_id=user_id,
        statuses=None if query["status"] is None else sorted(set(query["status"])),
        labels=frozenset(query["label"] or ()),
        name=query["name"],
        schedule_id=query["schedule_id"],
        since=query["since"] or _LONG_AGO,
        until=query["until"] or _FAR_AHEAD,
    )


def decide_scope(identity: Identity, user_id: UUID | None) -> UUID | None:
    """Whose tasks are meant; None means everybody's. Forbidden when a user asks for another's."""
    if identity.is_admin:
        return user_id
    if user_id not in (None, identity.user_id):
        raise Forbidden("Only an admin sees other users' tasks; leave userId out.", code="role_lacking")
    return identity.user_id
