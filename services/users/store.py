"""The users schema's statements as functions. Each takes the connection; the caller opens the transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.paging import Cursor
from libs.common.postgres import Connection, load_queries
from services.users.roles import Role

QUERIES = load_queries("services.users")


@dataclass(frozen=True, slots=True)
class Account:
    """What is stored of a user. `version` is raised to end older access tokens."""

    id: UUID
    name: str
    email: str
    email_key: str
    password_hash: str
    roles: Sequence[str]
    enabled: bool
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def is_enabled_admin(self) -> bool:
        return self.enabled and Role.ADMIN in self.roles


@dataclass(frozen=True, slots=True)
class PersonalToken:
    """A personal access token, without the token itself."""

    id: UUID
    account_id: UUID
    name: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Deletion:
    user_id: UUID
    deleted_at: datetime


def insert_account(
    connection: Connection,
    *,
    account_id: UUID,
    name: str,
    email: str,
    email_key: str,
    password_hash: str,
    roles: Sequence[str],
) -> Account:
    """psycopg's UniqueViolation when the email is in use."""
    row = connection.execute(
        QUERIES["insert_account"],
        {
            "id": account_id,
            "name": name,
            "email": email,
            "email_key": email_key,
            "password_hash": password_hash,
            "roles": list(roles),
        },
    ).fetchone()
    return _to_account(_only(row))


def find_account(connection: Connection, account_id: UUID) -> Account | None:
    row = connection.execute(QUERIES["find_account"], {"id": account_id}).fetchone()
    return _to_account(row) if row else None


def find_account_by_email(connection: Connection, email_key: str) -> Account | None:
    row = connection.execute(QUERIES["find_account_by_email"], {"email_key": email_key}).fetchone()
    return _to_account(row) if row else None


def lock_accounts(connection: Connection, account_ids: Iterable[UUID]) -> dict[UUID, Account]:
    """The accounts that exist, by id, locked until the transaction ends."""
    rows = connection.execute(QUERIES["lock_accounts"], {"ids": list(account_ids)}).fetchall()
    return {row["id"]: _to_account(row) for row in rows}


def list_accounts(connection: Connection, *, cursor: Cursor | None, limit: int) -> list[Account]:
    """Newest first."""
    rows = connection.execute(QUERIES["list_accounts"], {"limit": limit, **_after(cursor)}).fetchall()
    return [_to_account(row) for row in rows]


def update_account(connection: Connection, account: Account) -> Account:
    """Store what may change of it. psycopg's UniqueViolation when the email is in use."""
    row = connection.execute(
        QUERIES["update_account"],
        {
            "id": account.id,
            "name": account.name,
            "email": account.email,
            "email_key": account.email_key,
            "password_hash": account.password_hash,
            "roles": list(account.roles),
            "enabled": account.enabled,
            "version": account.version,
        },
    ).fetchone()
    return _to_account(_only(row))


def delete_account(connection: Connection, account_id: UUID) -> None:
    """The account with its sessions and tokens; the deletion is recorded for the other services."""
    connection.execute(QUERIES["delete_account"], {"id": account_id})
    connection.execute(QUERIES["insert_deletion"], {"user_id": account_id})


def lock_admins(connection: Connection) -> None:
    """Wait until no other transaction is changing who is an admin. Call before locking accounts."""
    connection.execute(QUERIES["lock_admins"])


def other_enabled_admin_exists(connection: Connection, account_id: UUID) -> bool:
    row = connection.execute(QUERIES["other_enabled_admin_exists"], {"id": account_id}).fetchone()
    return bool(_only(row)["exists"])


def list_deletions(connection: Connection, *, since: datetime) -> list[Deletion]:
    """Oldest first."""
    rows = connection.execute(QUERIES["list_deletions"], {"since": since}).fetchall()
    return [Deletion(row["user_id"], row["deleted_at"]) for row in rows]


def insert_session(connection: Connection, *, session_id: UUID, account_id: UUID, expires_at: datetime) -> None:
    connection.execute(
        QUERIES["insert_session"], {"id": session_id, "account_id": account_id, "expires_at": expires_at}
    )


def extend_session(connection: Connection, session_id: UUID, *, expires_at: datetime) -> None:
    connection.execute(QUERIES["extend_session"], {"id": session_id, "expires_at": expires_at})


def delete_session(connection: Connection, session_id: UUID, *, account_id: UUID) -> bool:
    """Whether there was such a session."""
    done = connection.execute(QUERIES["delete_session"], {"id": session_id, "account_id": account_id})
    return done.rowcount > 0


def delete_sessions(connection: Connection, account_id: UUID) -> None:
    connection.execute(QUERIES["delete_sessions"], {"account_id": account_id})


def delete_expired_sessions(connection: Connection, *, limit: int) -> None:
    """The oldest of anybody's."""
    connection.execute(QUERIES["delete_expired_sessions"], {"limit": limit})


def session_is_active(connection: Connection, *, account_id: UUID, session_id: UUID, version: int) -> bool:
    """Whether tokens of that login or personal access token, issued at that version, still count."""
    row = connection.execute(
        QUERIES["session_is_active"],
        {"account_id": account_id, "session_id": session_id, "version": version},
    ).fetchone()
    return bool(_only(row)["active"])


def insert_refresh_token(
    connection: Connection, token_hash: bytes, *, session_id: UUID, expires_at: datetime
) -> None:
    connection.execute(
        QUERIES["insert_refresh_token"],
        {"token_hash": token_hash, "session_id": session_id, "expires_at": expires_at},
    )


def find_refresh_token(connection: Connection, token_hash: bytes) -> tuple[UUID, UUID] | None:
    """The ids of the account and the session of an unexpired token, used or not."""
    row = connection.execute(QUERIES["find_refresh_token"], {"token_hash": token_hash}).fetchone()
    return (row["account_id"], row["session_id"]) if row else None


def use_refresh_token(connection: Connection, token_hash: bytes) -> bool:
    """Mark it used. False when it had been used already, or is gone or expired."""
    return connection.execute(QUERIES["use_refresh_token"], {"token_hash": token_hash}).rowcount > 0


def delete_expired_refresh_tokens(connection: Connection, session_id: UUID) -> None:
    connection.execute(QUERIES["delete_expired_refresh_tokens"], {"session_id": session_id})


def insert_personal_token(
    connection: Connection,
    *,
    token_id: UUID,
    account_id: UUID,
    name: str,
    token_hash: bytes,
    expires_at: datetime | None,
) -> PersonalToken:
    row = connection.execute(
        QUERIES["insert_personal_token"],
        {
            "id": token_id,
            "account_id": account_id,
            "name": name,
            "token_hash": token_hash,
            "expires_at": expires_at,
        },
    ).fetchone()
    return PersonalToken(**_only(row))


def list_personal_tokens(
    connection: Connection, *, account_id: UUID, cursor: Cursor | None, limit: int
) -> list[PersonalToken]:
    """Newest first."""
    rows = connection.execute(
        QUERIES["list_personal_tokens"], {"account_id": account_id, "limit": limit, **_after(cursor)}
    ).fetchall()
    return [PersonalToken(**row) for row in rows]


def find_personal_token(connection: Connection, token_hash: bytes) -> PersonalToken | None:
    """The unexpired token of that hash."""
    row = connection.execute(QUERIES["find_personal_token"], {"token_hash": token_hash}).fetchone()
    return PersonalToken(**row) if row else None


def touch_personal_token(connection: Connection, token_id: UUID) -> None:
    connection.execute(QUERIES["touch_personal_token"], {"id": token_id})


def delete_personal_token(connection: Connection, token_id: UUID, *, account_id: UUID) -> bool:
    """Whether that account had such a token."""
    done = connection.execute(QUERIES["delete_personal_token"], {"id": token_id, "account_id": account_id})
    return done.rowcount > 0


def delete_personal_tokens(connection: Connection, account_id: UUID) -> None:
    connection.execute(QUERIES["delete_personal_tokens"], {"account_id": account_id})


def _after(cursor: Cursor | None) -> dict[str, Any]:
    if cursor is None:
        return {"cursor_at": None, "cursor_id": None}
    return {"cursor_at": cursor.created_at, "cursor_id": cursor.id}


def _only(row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None:
        raise LookupError("the statement answers exactly one row")
    return row


def _to_account(row: dict[str, Any]) -> Account:
    # By name, since a migration may add a column while this code still runs.
    return Account(
        id=row["id"],
        name=row["name"],
        email=row["email"],
        email_key=row["email_key"],
        password_hash=row["password_hash"],
        roles=row["roles"],
        enabled=row["enabled"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
