"""Users: signing up, being changed and deleted, and the rule that an enabled admin must remain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from psycopg.errors import UniqueViolation

from libs.common.errors import Conflict, Forbidden, Invalid, NotFound
from libs.common.postgres import Connection
from libs.common.tokens import Identity
from services.users import sessions, store
from services.users.emails import email_key
from services.users.passwords import PasswordHasher
from services.users.roles import Role, in_order
from services.users.store import Account

_NOBODY = UUID(int=0)


class EmailTaken(Conflict):
    def __init__(self) -> None:
        super().__init__("Another user has this email.", code="email_taken")


class LastAdmin(Conflict):
    def __init__(self) -> None:
        super().__init__("This is the last enabled admin. Make somebody else an admin first.", code="last_admin")


class UserNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such user.", code="user_not_found")


@dataclass(frozen=True, slots=True)
class NewAccount:
    """Who is to be added. Its id and hash are made before the transaction, so that it may run twice."""

    id: UUID
    name: str
    email: str
    password_hash: str
    roles: Sequence[str]


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be changed; None leaves it as it is."""

    name: str | None = None
    email: str | None = None
    password_hash: str | None = None
    roles: Sequence[str] | None = None
    enabled: bool | None = None

    @property
    def may_cost_an_admin(self) -> bool:
        return self.enabled is False or (self.roles is not None and Role.ADMIN not in self.roles)


def prepare(body: Mapping[str, Any], *, roles: Sequence[str], passwords: PasswordHasher) -> NewAccount:
    """Who is to be added, from `name`, `email` and `password`. Hashing takes its time: not in a transaction."""
    return NewAccount(
        id=uuid4(),
        name=body["name"],
        email=body["email"],
        password_hash=passwords.hash(body["password"]),
        roles=roles,
    )


def add(connection: Connection, new: NewAccount) -> Account:
    """EmailTaken when somebody has the email, in whatever case."""
    try:
        return store.insert_account(
            connection,
            account_id=new.id,
            name=new.name,
            email=new.email,
            email_key=email_key(new.email),
            password_hash=new.password_hash,
            roles=in_order(new.roles),
        )
    except UniqueViolation as error:
        raise EmailTaken from error


def create(connection: Connection, new: NewAccount, *, caller: Identity) -> Account:
    """Add a user on an admin's behalf."""
    store.lock_accounts(connection, [caller.user_id])
    sessions.require_active(connection, caller)
    return add(connection, new)


def find_by_email(connection: Connection, address: str) -> Account | None:
    try:
        return store.find_account_by_email(connection, email_key(address))
    except ValueError:
        return None


def get(connection: Connection, account_id: UUID) -> Account:
    """UserNotFound when there is none of that id."""
    account = store.find_account(connection, account_id)
    if account is None:
        raise UserNotFound
    return account


def require_self_or_admin(caller: Identity, account_id: UUID) -> None:
    """To everybody else another user's account looks as if it weren't there (API: Conventions, 404)."""
    if not caller.is_admin and caller.user_id != account_id:
        raise UserNotFound


def check_current_password(account: Account, password: str, passwords: PasswordHasher) -> None:
    """Invalid when it isn't the account's password. Takes a hash's time: not in a transaction."""
    if not passwords.matches(password, account.password_hash):
        raise Invalid("The current password is wrong.", errors={"currentPassword": ["Is wrong."]})


def change(connection: Connection, account_id: UUID, wanted: Change, *, caller: Identity) -> Account:
    """Apply the change and end the tokens that it invalidates.

    UserNotFound for a stranger, Forbidden when a user who is no admin changes `roles` or `enabled`, EmailTaken,
    LastAdmin.
    """
    require_self_or_admin(caller, account_id)
    if not caller.is_admin and (wanted.enabled is not None or wanted.roles is not None):
        raise Forbidden("Only an admin may change this.", code="role_lacking")
    if wanted.may_cost_an_admin:
        store.lock_admins(connection)
    before = _lock_target(connection, account_id, caller)
    after = _decide_change(before, wanted)
    if after == before:
        return before
    if before.is_enabled_admin and not after.is_enabled_admin:
        _require_other_admin(connection, account_id)
    if after.password_hash != before.password_hash or not after.enabled:
        store.delete_sessions(connection, account_id)
        store.delete_personal_tokens(connection, account_id)
    return _update(connection, after)


def _decide_change(before: Account, wanted: Change) -> Account:
    """The account as it is to be. A new version ends the access tokens of the old one."""
    after = replace(
        before,
        name=before.name if wanted.name is None else wanted.name,
        email=before.email if wanted.email is None else wanted.email,
        email_key=before.email_key if wanted.email is None else email_key(wanted.email),
        password_hash=wanted.password_hash or before.password_hash,
        roles=before.roles if wanted.roles is None else in_order(wanted.roles),
        enabled=before.enabled if wanted.enabled is None else wanted.enabled,
    )
    ends_tokens = (
        after.password_hash != before.password_hash
        or after.roles != before.roles
        or (before.enabled and not after.enabled)
    )
    return replace(after, version=before.version + 1) if ends_tokens else after


def _update(connection: Connection, account: Account) -> Account:
    try:
        return store.update_account(connection, account)
    except UniqueViolation as error:
        raise EmailTaken from error


def delete(connection: Connection, account_id: UUID, *, caller: Identity) -> None:
    """Remove the user with all sessions and tokens. UserNotFound, LastAdmin."""
    require_self_or_admin(caller, account_id)
    store.lock_admins(connection)
    account = _lock_target(connection, account_id, caller)
    if account.is_enabled_admin:
        _require_other_admin(connection, account_id)
    store.delete_account(connection, account_id)


def _lock_target(connection: Connection, account_id: UUID, caller: Identity) -> Account:
    locked = store.lock_accounts(connection, {account_id, caller.user_id})
    sessions.require_active(connection, caller)
    if account_id not in locked:
        raise UserNotFound
    return locked[account_id]


def _require_other_admin(connection: Connection, account_id: UUID) -> None:
    if not store.other_enabled_admin_exists(connection, account_id):
        raise LastAdmin


def has_enabled_admin(connection: Connection) -> bool:
    return store.other_enabled_admin_exists(connection, _NOBODY)


def ensure_admin(connection: Connection, new: NewAccount) -> bool:
    """Make the operator's admin, unless an enabled admin exists. Whether it was made.

    Somebody may have signed up with the operator's email before: that account becomes the operator's, and
    whoever made it is logged out.
    """
    store.lock_admins(connection)
    if store.other_enabled_admin_exists(connection, new.id):
        return False
    squatter = find_by_email(connection, new.email)
    if squatter is None:
        add(connection, new)
        return True
    store.delete_sessions(connection, squatter.id)
    store.delete_personal_tokens(connection, squatter.id)
    store.update_account(
        connection,
        replace(
            squatter,
            password_hash=new.password_hash,
            roles=in_order(new.roles),
            enabled=True,
            version=squatter.version + 1,
        ),
    )
    return True
