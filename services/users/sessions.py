"""Logins: how a session starts, goes on by refresh tokens, and ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from prometheus_client import Counter

from libs.common.errors import Conflict, Unauthorized
from libs.common.postgres import Connection
from libs.common.tokens import Identity
from services.users import store
from services.users.opaque_tokens import hash_token, make_token
from services.users.passwords import PasswordHasher
from services.users.store import Account

log = structlog.get_logger()

LOGINS = Counter("users_logins_total", "Logins tried, by how they ended.", ["outcome"])

_CLEARED_BY_A_LOGIN = 20
_REFRESH_PREFIX = "trr_"


class LoginRefused(Unauthorized):
    """The same words for every reason, so that nobody learns which emails are in use."""

    def __init__(self) -> None:
        super().__init__("The email or the password is wrong.", code="login_refused")


class SessionEnded(Unauthorized):
    def __init__(self) -> None:
        super().__init__("The session has ended. Log in again.", code="session_ended")


class RefreshRefused(Unauthorized):
    def __init__(self) -> None:
        super().__init__("The refresh token is not valid any more. Log in again.", code="refresh_refused")


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """Made before the transaction that stores its hash, so that the transaction may run twice."""

    token: str
    expires_at: datetime

    @property
    def token_hash(self) -> bytes:
        return hash_token(self.token)


@dataclass(frozen=True, slots=True)
class Session:
    id: UUID
    account: Account


def make_refresh_token(*, now: datetime, life: timedelta) -> RefreshToken:
    return RefreshToken(make_token(_REFRESH_PREFIX), now + life)


def check_password(account: Account | None, password: str, passwords: PasswordHasher) -> Account:
    """The account, if it may log in with that password. LoginRefused otherwise, after the same work."""
    is_right = passwords.matches(password, account.password_hash if account else None)
    if account is None:
        raise _refused("unknown_email", account_id=None)
    if not is_right:
        raise _refused("wrong_password", account_id=account.id)
    if not account.enabled:
        raise _refused("disabled", account_id=account.id)
    return account


def _refused(reason: str, *, account_id: UUID | None) -> LoginRefused:
    LOGINS.labels(reason).inc()
    log.info("login_refused", reason=reason, user_id=str(account_id) if account_id else None)
    return LoginRefused()


def log_in(connection: Connection, checked: Account, *, session_id: UUID, refresh: RefreshToken) -> Session:
    """Start a session of an account whose password was just checked, outside this transaction.

    LoginRefused when the account has changed since in a way that matters.
    """
    account = store.lock_accounts(connection, [checked.id]).get(checked.id)
    if account is None or not account.enabled or account.password_hash != checked.password_hash:
        raise LoginRefused
    # There is no loop in this service: each login, which adds one, clears away more than one.
    store.delete_expired_sessions(connection, limit=_CLEARED_BY_A_LOGIN)
    return start(connection, account, session_id=session_id, refresh=refresh)


def start(connection: Connection, account: Account, *, session_id: UUID, refresh: RefreshToken) -> Session:
    """A new session with its first refresh token."""
    store.insert_session(connection, session_id=session_id, account_id=account.id, expires_at=refresh.expires_at)
    store.insert_refresh_token(
        connection, refresh.token_hash, session_id=session_id, expires_at=refresh.expires_at
    )
    return Session(session_id, account)


def refresh_session(connection: Connection, token: str, *, refresh: RefreshToken) -> Session | None:
    """Exchange an unused refresh token for the next one.

    None when it isn't valid. One that was used before is in two hands, of which one is a thief's: the whole
    session ends, so the caller must commit also when the answer is None.
    """
    token_hash = hash_token(token)
    found = store.find_refresh_token(connection, token_hash)
    if found is None:
        return None
    account_id, session_id = found
    # The account first, as in every other transaction: whoever ends its sessions waits, or has ended this one.
    account = store.lock_accounts(connection, [account_id]).get(account_id)
    if account is None or store.find_refresh_token(connection, token_hash) is None:
        return None
    if not store.use_refresh_token(connection, token_hash):
        store.delete_session(connection, session_id, account_id=account_id)
        log.warning("refresh_token_reused", user_id=str(account_id), session_id=str(session_id))
        return None
    store.delete_expired_refresh_tokens(connection, session_id)
    store.insert_refresh_token(
        connection, refresh.token_hash, session_id=session_id, expires_at=refresh.expires_at
    )
    store.extend_session(connection, session_id, expires_at=refresh.expires_at)
    return Session(session_id, account)


def log_out(connection: Connection, caller: Identity) -> None:
    """End the caller's own session. Conflict when the caller came with a personal access token."""
    store.lock_accounts(connection, [caller.user_id])
    require_active(connection, caller)
    if not store.delete_session(connection, caller.session_id, account_id=caller.user_id):
        raise Conflict("A personal access token has no session to end; delete the token.", code="no_session")


def require_active(connection: Connection, caller: Identity) -> None:
    """SessionEnded unless the caller's token still counts.

    The gateway asks the same within 5 s, but here a token that has just ended must not make another one. To
    hold until the commit, the caller's account must be locked.
    """
    if not store.session_is_active(
        connection, account_id=caller.user_id, session_id=caller.session_id, version=caller.version
    ):
        raise SessionEnded
