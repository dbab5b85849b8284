"""Finds and counts tasks in PostgreSQL, at a cost that doesn't grow with how many there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from libs.common.paging import Cursor
from libs.common.postgres import Connection, load_queries
from services.scheduler.states import TaskStatus

QUERIES = load_queries("services.scheduler")

# A way that looks at fewer tasks than this is cheap, whatever it finds.
FEW = 2000
# So many different names aren't merged any more, but sorted.
MANY_NAMES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks: all that is given must hold. `user_id` None means everybody's; since ≤ created_at < until.

    `statuses` None means all. `name` is how the task's name begins.
    """

    user_id: UUID | None
    statuses: Sequence[TaskStatus] | None
    labels: Collection[tuple[str, str]]
    name: str | None
    schedule_id: UUID | None
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Term:
    """What tasks are found by in scheduler.task_terms."""

    text: str
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A task's place in the order of lists."""

    id: UUID
    created_at: datetime


def list_terms(wanted: TaskFilter) -> list[Term]:
    """The filter's terms, as scheduler.list_terms writes them."""
    terms = [Term(f"l:{key}:{value}") for key, value in sorted(wanted.labels)]
    if wanted.schedule_id is not None:
        terms.append(Term(f"s:{wanted.schedule_id}"))
    if wanted.name is not None:
        terms.append(Term(f"n:{wanted.name}", is_prefix=True))
    return terms


def decide_way(terms: Mapping[Term, int], statuses_weight: int | None, *, few: int) -> Term | None:
    """Which term leads to the filter's tasks with the least work; None: their statuses do.

    `terms` are the filter's with how many tasks each finds, no more than `few` being counted; `statuses_weight`
    is the same for its statuses, None when it names none.
    """
    if not terms:
        return None
    rarest, weight = min(terms.items(), key=lambda entry: entry[1])
    if statuses_weight is not None and statuses_weight < min(weight, few):
        return None
    if weight < few:
        return rarest
    # Everything is frequent. An exact term is read in the order of lists; a prefix perhaps has to be sorted.
    return next((term for term in terms if not term.is_prefix), rarest)


def find_page(connection: Connection, wanted: TaskFilter, *, before: Cursor, limit: int) -> list[Found]:
    """At most `limit` tasks after that place, newest first.

    A task that was deleted while it ran may be among them until its run has ended.
    """
    way = _choose_way(connection, wanted)
    terms = list_terms(wanted)
    # Both bounds in one, since an index scan begins at one of them and may pick the one that is further off.
    start = min((before.created_at, before.id), (wanted.until, UUID(int=0)))
    others = [term.text for term in terms if term != way and not term.is_prefix]
    parameters = _to_parameters(wanted) | {
        "others": others or None,
        "before_time": start[0],
        "before_id": start[1],
        "limit": limit,
    }
    if way is None:
        return _query(connection, "find_page_by_statuses", parameters)
    if not way.is_prefix:
        return _query(connection, "find_page_by_terms", parameters | {"terms": [way.text]})
    parameters |= {"prefix": way.text, "name": None}
    names = connection.execute(
        QUERIES["list_terms_with_prefix"], parameters | {"limit": MANY_NAMES}, prepare=False
    ).fetchall()
    if len(names) < MANY_NAMES:
        return _query(connection, "find_page_by_terms", parameters | {"terms": [row["term"] for row in names]})
    return _query(connection, "find_page_by_prefix", parameters)


def count_fitting_tasks(connection: Connection, task_ids: Sequence[UUID], *, most_bytes: int) -> int:
    """How many of them, from the first on, have so many bytes of definitions and results; at least one."""
    parameters = {"task_ids": list(task_ids), "most_bytes": most_bytes}
    row = connection.execute(QUERIES["count_fitting_tasks"], parameters).fetchone()
    assert row is not None, "an aggregate that returns nothing"  # noqa: S101
    return max(int(row["count"]), 1)


def _query(connection: Connection, name: str, parameters: Mapping[str, Any]) -> list[Found]:
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        # Planned each time with the values: which index serves depends on which of them are given.
        return cursor.execute(QUERIES[name], parameters, prepare=False).fetchall()


def _choose_way(connection: Connection, wanted: TaskFilter) -> Term | None:
    terms = list_terms(wanted)
    if len(terms) + (wanted.statuses is not None) <= 1:
        return terms[0] if terms else None
    parameters = _to_parameters(wanted) | {
        "terms": [term.text for term in terms],
        "are_prefixes": [term.is_prefix for term in terms],
        "limit": FEW,
    }
    rows = connection.execute(QUERIES["weigh_terms"], parameters, prepare=False)
    weights = {Term(row["term"], row["is_prefix"]): row["weight"] for row in rows}
    statuses_weight = None
    if wanted.statuses is not None:
        row = connection.execute(QUERIES["weigh_statuses"], parameters, prepare=False).fetchone()
        assert row is not None, "an aggregate that returns nothing"  # noqa: S101
        statuses_weight = row["weight"]
    return decide_way(weights, statuses_weight, few=FEW)


def _to_parameters(wanted: TaskFilter) -> dict[str, Any]:
    return {
        "user_id": wanted.user_id,
        "statuses": list(TaskStatus) if wanted.statuses is None else list(wanted.statuses),
        "filtered_statuses": None if wanted.statuses is None else list(wanted.statuses),
        "name": wanted.name,
        "since": wanted.since,
    }


def count_tasks(connection: Connection, user_id: UUID | None) -> dict[TaskStatus, int]:
    """How many tasks there are of each status, of one user or of all."""
    rows = connection.execute(QUERIES["count_tasks"], {"user_id": user_id}, prepare=False)
    counts = {row["status"]: row["count"] for row in rows}
    return {status: counts.get(status, 0) for status in TaskStatus}


def add_up_task_counts(connection: Connection, *, limit: int) -> int:
    """Add changes of the counts to them. Returns how many counts changed."""
    return connection.execute(QUERIES["add_up_task_counts"], {"limit": limit}).rowcount
