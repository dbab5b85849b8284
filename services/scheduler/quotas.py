"""Quotas: how much one user may have under way, waiting, and create a minute.

`running` is dispatch's (shares.py): over it tasks wait. The other two are decided here, when tasks are created,
and are exact: creations of one user follow each other where one of the two limits them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

import structlog

from libs.common.errors import Forbidden, NotFound, TooManyRequests
from libs.common.postgres import Connection, Pool, in_transaction, on_connection
from libs.common.tokens import Identity
from services.scheduler import quota_store
from services.scheduler.quota_store import Creation, Quota
from services.scheduler.users_client import UsersClient

log = structlog.get_logger()

# Nobody can say when a waiting task of theirs will start; a client that asks this often is no burden.
_WAITING_RETRY_SECONDS = 5
_MINUTE_SECONDS = 60
_NEVER = "Send fewer at a time, or ask an admin for a larger quota: as it is, this never fits."


class Quotas:
    """What admins set for users, and what it means for their requests."""

    def __init__(self, *, pool: Pool, users: UsersClient, defaults: Quota) -> None:
        self._pool = pool
        self._users = users
        self._defaults = defaults

    def get(self, identity: Identity, user_id: UUID) -> tuple[Quota, Quota]:
        """What was set for the user, and what that comes to. NotFound for another user's, but not for an admin."""
        if identity.user_id != user_id:
            if not identity.is_admin:
                raise _no_such_user()
            self._require_user(user_id)
        quota = (
            on_connection(self._pool, lambda connection: quota_store.find_quota(connection, user_id)) or Quota()
        )
        return quota, quota.over(self._defaults)

    def put(self, identity: Identity, user_id: UUID, quota: Quota) -> tuple[Quota, Quota]:
        """Set all of a user's quota; it holds from the next request and the next dispatch on."""
        if not identity.is_admin:
            raise Forbidden("Only an admin sets quotas.", code="role_lacking")
        self._require_user(user_id)
        in_transaction(self._pool, lambda connection: quota_store.put_quota(connection, user_id, quota))
        log.info("quota_set", user_id=str(user_id))
        return quota, quota.over(self._defaults)

    @contextmanager
    def admit(self, connection: Connection, created: Mapping[UUID, Collection[UUID]]) -> Iterator[None]:
        """Around the insertion of tasks, given by owner: raises TooManyRequests when an owner's quota says no.

        Where a quota has to be counted, what is inside is one transaction.
        """
        quotas = {
            user_id: (quota_store.find_quota(connection, user_id) or Quota()).over(self._defaults)
            for user_id in sorted(created)
        }
        limited = {user_id: quota for user_id, quota in quotas.items() if _limits_creation(quota)}
        if not limited:
            yield
            return
        with connection.transaction():
            # In one order for everybody, so that two batches don't wait for each other in turn.
            for user_id, quota in limited.items():
                _count_in(connection, user_id, quota, created[user_id])
            yield

    def _require_user(self, user_id: UUID) -> None:
        if not self._users.exists(user_id):
            raise _no_such_user()


def decide_wait_seconds(creations: Sequence[Creation], *, wanted: int, limit: int) -> int | None:
    """In how many seconds so many tasks fit into the minute's limit; 0 now, None never.

    `creations` of the last minute, the oldest first.
    """
    if wanted > limit:
        return None
    excess = sum(creation.tasks for creation in creations) + wanted - limit
    for creation in creations:
        if excess <= 0:
            break
        excess -= creation.tasks
        if excess <= 0:
            return max(math.ceil(creation.counts_for_seconds), 1)
    return 0


def _limits_creation(quota: Quota) -> bool:
    return quota.queued is not None or quota.created_per_minute is not None


def _count_in(connection: Connection, user_id: UUID, quota: Quota, task_ids: Collection[UUID]) -> None:
    quota_store.lock_creation(connection, user_id)
    if quota_store.have_been_created(connection, task_ids):
        # The same insertion again, after a broken connection: it was counted.
        return
    wanted = len(task_ids)
    if quota.queued is not None:
        _require_queue_room(connection, user_id, limit=quota.queued, wanted=wanted)
    if quota.created_per_minute is not None:
        creations = quota_store.list_creations(connection, user_id)
        wait_seconds = decide_wait_seconds(creations, wanted=wanted, limit=quota.created_per_minute)
        if wait_seconds != 0:
            raise _exceeded(
                f"The quota is {quota.created_per_minute} created tasks a minute, and {_are(wanted)} to be "
                f"created. {'Try again later.' if wait_seconds else _NEVER}",
                retry_after_seconds=wait_seconds or _MINUTE_SECONDS,
            )
        quota_store.note_creation(connection, user_id, tasks=wanted)


def _require_queue_room(connection: Connection, user_id: UUID, *, limit: int, wanted: int) -> None:
    room = limit - wanted
    if room < 0 or quota_store.count_waiting(connection, user_id, most=room + 1) > room:
        advice = "Try again when some have started, or cancel some." if room >= 0 else _NEVER
        raise _exceeded(
            f"The quota is {limit} waiting tasks, those with a later start included, and {_are(wanted)} to be "
            f"created. {advice}",
            retry_after_seconds=_WAITING_RETRY_SECONDS,
        )


def _are(tasks: int) -> str:
    return "1 is" if tasks == 1 else f"{tasks} are"


def _exceeded(detail: str, *, retry_after_seconds: int) -> TooManyRequests:
    return TooManyRequests(detail, code="quota_exceeded", retry_after_seconds=retry_after_seconds)


def _no_such_user() -> NotFound:
    return NotFound("There is no such user.")
