"""Who sees which task: its owner, and admins. For everybody else it isn't there."""

from __future__ import annotations

from uuid import UUID

from libs.common.errors import NotFound
from libs.common.postgres import Connection
from libs.common.tokens import Identity
from services.scheduler import store


def may_see(identity: Identity, owner: UUID) -> bool:
    return identity.is_admin or identity.user_id == owner


def require_visible(connection: Connection, identity: Identity, task_id: UUID) -> None:
    """Raise NotFound for a task that isn't there, and for another user's."""
    owner = store.find_owner(connection, task_id)
    if owner is None or not may_see(identity, owner):
        raise no_such_task()


def no_such_task() -> NotFound:
    return NotFound("There is no such task.")
