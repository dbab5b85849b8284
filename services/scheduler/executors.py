"""What operators do with executors: list, drain, undrain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from libs.common.errors import Forbidden, NotFound
from libs.common.postgres import Pool, in_transaction, on_connection
from libs.common.tokens import Identity
from services.scheduler import executor_store
from services.scheduler.executor_store import KnownExecutor
from services.scheduler.states import ExecutorState

log = structlog.get_logger()

SILENT = "silent"


class Executors:
    """The executors that were heard of within a day. Every method raises Forbidden for who isn't an admin.

    `wake_dispatch` tells the dispatch loop that there may be room; it must not block.
    """

    def __init__(self, *, pool: Pool, wake_dispatch: Callable[[], None]) -> None:
        self._pool = pool
        self._wake_dispatch = wake_dispatch

    def list_page(self, identity: Identity, *, after: str, limit: int) -> tuple[list[KnownExecutor], str | None]:
        """Executors in the order of their ids, and after which id the next page starts."""
        _require_admin(identity)
        found = on_connection(
            self._pool,
            lambda connection: executor_store.list_executors(connection, after=after, limit=limit + 1),
        )
        page = found[:limit]
        return page, page[-1].id if len(found) > limit else None

    def drain(self, identity: Identity, executor_id: str) -> KnownExecutor:
        """It takes no more runs, from now on; those that it has go on to their end."""
        return self._set_state(identity, executor_id, ExecutorState.DRAINING)

    def undrain(self, identity: Identity, executor_id: str) -> KnownExecutor:
        executor = self._set_state(identity, executor_id, ExecutorState.ACTIVE)
        self._wake_dispatch()
        return executor

    def _set_state(self, identity: Identity, executor_id: str, state: ExecutorState) -> KnownExecutor:
        _require_admin(identity)
        executor = in_transaction(
            self._pool, lambda connection: executor_store.set_state(connection, executor_id, state)
        )
        if executor is None:
            raise NotFound("There is no such executor.")
        log.info("executor_state_set", executor_id=executor_id, state=state)
        return executor


def to_view(executor: KnownExecutor) -> Mapping[str, Any]:
    """As the API shows it: one that was not heard of lately is silent, whatever else it is."""
    return {
        "id": executor.id,
        "host": executor.host,
        "engine": executor.engine_id,
        "pools": executor.pools,
        "slots": executor.slots,
        "running": executor.running,
        "state": executor.state if executor.is_heard else SILENT,
        "started_at": executor.started_at,
        "last_seen_at": executor.last_seen_at,
    }


def _require_admin(identity: Identity) -> None:
    if not identity.is_admin:
        raise Forbidden("Only an admin sees and drains executors.", code="role_lacking")
