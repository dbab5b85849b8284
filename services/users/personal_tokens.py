"""Personal access tokens: long-lived, for programs; exchanged for a short-lived JWT by the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.errors import NotFound, Unauthorized
from libs.common.postgres import Connection
from libs.common.tokens import PERSONAL_TOKEN_PREFIX, Identity
from services.users import sessions, store
from services.users.opaque_tokens import hash_token, make_token
from services.users.store import Account, PersonalToken

EXCHANGED_LIFE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class NewPersonalToken:
    """Made before the transaction, so that it may run twice. `token` is shown once and never stored."""

    id: UUID
    name: str
    token: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Exchange:
    """Whom a personal access token stands for, and how long its JWT may live."""

    account: Account
    token_id: UUID
    life: timedelta


def make_personal_token() -> str:
    return make_token(PERSONAL_TOKEN_PREFIX)


def create(connection: Connection, new: NewPersonalToken, *, caller: Identity) -> PersonalToken:
    store.lock_accounts(connection, [caller.user_id])
    sessions.require_active(connection, caller)
    return store.insert_personal_token(
        connection,
        token_id=new.id,
        account_id=caller.user_id,
        name=new.name,
        token_hash=hash_token(new.token),
        expires_at=new.expires_at,
    )


def delete(connection: Connection, token_id: UUID, *, caller: Identity) -> None:
    """End it. NotFound when the caller has none of that id."""
    store.lock_accounts(connection, [caller.user_id])
    sessions.require_active(connection, caller)
    if not store.delete_personal_token(connection, token_id, account_id=caller.user_id):
        raise NotFound("There is no such personal access token.", code="token_not_found")


def exchange(connection: Connection, token: str, *, now: datetime) -> Exchange:
    """Unauthorized when the token is unknown, has expired or was deleted, or its user is disabled."""
    found = store.find_personal_token(connection, hash_token(token))
    account = store.find_account(connection, found.account_id) if found else None
    if found is None or account is None or not account.enabled:
        raise Unauthorized("The personal access token is not valid.", code="token_refused")
    store.touch_personal_token(connection, found.id)
    life = EXCHANGED_LIFE if found.expires_at is None else min(EXCHANGED_LIFE, found.expires_at - now)
    return Exchange(account, found.id, max(life, timedelta(seconds=1)))
