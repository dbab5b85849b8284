"""Does what a creating request asks for once, however often it is sent (API: Conventions, Idempotency-Key).

The first answer is kept in the transaction that does the work, so there is no moment in which one is without the
other. A request that fails leaves nothing, and may be sent again with the same key.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

from psycopg.errors import LockNotAvailable

from libs.common.errors import Conflict, Invalid
from libs.common.postgres import Connection, Pool, in_transaction, load_queries, on_connection

QUERIES = load_queries("services.scheduler")

KEPT = timedelta(hours=24)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client gets: a JSON body as it goes over the wire."""

    status: int
    body: bytes
    location: str | None = None
    is_replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """A user's name for one request. `fingerprint` tells what was asked for."""

    user_id: UUID
    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Once(Generic[Result]):
    """One creating request; `to_answer` writes what the client gets for the work's result.

    Without a key nothing is kept, and the same request does the same work again.
    """

    key: RequestKey | None
    to_answer: Callable[[Result], Answer]

    def find(self, pool: Pool) -> Answer | None:
        """The first answer, if this was done already. Ask before any check whose result may have changed since.

        Raises Invalid when the key was used for something else.
        """
        key = self.key
        if key is None:
            return None
        return on_connection(pool, lambda connection: _find_first_answer(connection, key))

    def run(self, pool: Pool, work: Callable[[Connection], Result]) -> Answer:
        """Do the work and answer, or answer as the request that did it at the same moment.

        With a key `work` runs in a transaction, without one each of its statements is its own. It may run twice
        when the connection breaks, so ids come from outside it. Raises Conflict when the other takes too long.
        """
        key = self.key
        if key is None:
            return self.to_answer(on_connection(pool, work))

        def transact(connection: Connection) -> Answer:
            if not _take(connection, key):
                answer = _find_first_answer(connection, key)
                assert answer is not None, "taken, then gone"  # noqa: S101
                return answer
            answer = self.to_answer(work(connection))
            _keep(connection, key, answer)
            return answer

        return in_transaction(pool, transact)


def make_fingerprint(method: str, path: str, body: Any) -> bytes:
    """What a request asks for; the order of keys and the spaces in its JSON don't matter."""
    text = json.dumps([method, path.rstrip("/"), body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def forget_keys(connection: Connection, *, limit: int) -> int:
    """Drop answers that were kept long enough. Returns how many."""
    return connection.execute(QUERIES["forget_idempotency_keys"], {"kept": KEPT, "limit": limit}).rowcount


def _take(connection: Connection, key: RequestKey) -> bool:
    """Whether this request is the first with its key. Waits while another one is under way."""
    try:
        return connection.execute(QUERIES["take_idempotency_key"], _to_parameters(key)).fetchone() is not None
    except LockNotAvailable as error:
        raise Conflict(
            "A request with this Idempotency-Key is still under way. Send it again in a moment.",
            code="idempotency_key_in_use",
            retry_after_seconds=1,
        ) from error


def _keep(connection: Connection, key: RequestKey, answer: Answer) -> None:
    # A batch's answer is a megabyte of much the same; the fastest level makes it a tenth.
    body = zlib.compress(answer.body, 1)
    kept = {"status": answer.status, "location": answer.location, "body": body}
    connection.execute(QUERIES["keep_first_answer"], _to_parameters(key) | kept)


def _find_first_answer(connection: Connection, key: RequestKey) -> Answer | None:
    row = connection.execute(QUERIES["find_first_answer"], _to_parameters(key)).fetchone()
    if row is None:
        return None
    if row["fingerprint"] != key.fingerprint:
        raise Invalid(
            "This Idempotency-Key was used for another request. Use a new key for a new request.",
            code="idempotency_key_reused",
            errors={"Idempotency-Key": ["Was used for another path or body within the last 24 hours."]},
        )
    return Answer(row["status"], zlib.decompress(row["body"]), row["location"], is_replayed=True)


def _to_parameters(key: RequestKey) -> dict[str, Any]:
    return {"user_id": key.user_id, "key": key.key, "fingerprint": key.fingerprint, "kept": KEPT}
