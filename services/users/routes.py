"""Users over HTTP: create, read, list, change, delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog

from libs.common.openapi import ApiBlueprint
from libs.common.paging import Page, to_page
from libs.common.postgres import Connection, Pool, in_transaction
from libs.common.tokens import Identity, TokenVerifier
from services.users import accounts, schemas, sessions, store
from services.users.accounts import Change
from services.users.guards import Guards
from services.users.passwords import PasswordHasher
from services.users.store import Account

log = structlog.get_logger()

Body = dict[str, Any]


def create_routes(*, pool: Pool, passwords: PasswordHasher, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("users", __name__, description="Who may use the service")
    guards = Guards(routes, verifier)
    _add_reading(routes, guards, pool)
    _add_changing(routes, guards, pool, passwords)
    _add_administration(routes, guards, pool, passwords)
    return routes


def _add_reading(routes: ApiBlueprint, guards: Guards, pool: Pool) -> None:
    @routes.get("/api/users/")
    @guards.admin
    @routes.arguments(schemas.ListUsers, location="query")
    @routes.response(200, schemas.UserPage)
    def list_users(query: Body, *, caller: Identity) -> Page:
        """List users, newest first (admin)"""

        def work(connection: Connection) -> list[Account]:
            sessions.require_active(connection, caller)
            return store.list_accounts(connection, cursor=query["cursor"], limit=query["limit"] + 1)

        return to_page(in_transaction(pool, work), limit=query["limit"])

    @routes.get("/api/users/me")
    @guards.user
    @routes.response(200, schemas.User)
    def get_me(*, caller: Identity) -> Account:
        """The user whose token this is"""
        return in_transaction(pool, _read_account(caller.user_id, caller))

    @routes.get("/api/users/<uuid:user_id>")
    @guards.anyone
    @routes.response(200, schemas.User)
    def get_user(user_id: UUID, *, caller: Identity | None) -> Account | Body:
        """A user: everything for themselves and admins, otherwise id and name"""
        account = in_transaction(pool, _read_account(user_id, caller))
        if caller is not None and (caller.is_admin or caller.user_id == user_id):
            return account
        return {"id": account.id, "name": account.name}


def _read_account(user_id: UUID, caller: Identity | None) -> Callable[[Connection], Account]:
    def work(connection: Connection) -> Account:
        if caller is not None:
            sessions.require_active(connection, caller)
        return accounts.get(connection, user_id)

    return work


def _add_changing(routes: ApiBlueprint, guards: Guards, pool: Pool, passwords: PasswordHasher) -> None:
    @routes.put("/api/users/<uuid:user_id>")
    @guards.user
    @routes.arguments(schemas.ChangeUser)
    @routes.response(200, schemas.User)
    def change_user(body: Body, user_id: UUID, *, caller: Identity) -> Account:
        """Change name, email, password (self, admin) or enabled (admin)"""
        accounts.require_self_or_admin(caller, user_id)
        if "current_password" in body and caller.user_id == user_id:
            current = in_transaction(pool, _read_account(user_id, caller))
            accounts.check_current_password(current, body["current_password"], passwords)
        wanted = Change(
            name=body.get("name"),
            email=body.get("email"),
            password_hash=passwords.hash(body["password"]) if "password" in body else None,
            enabled=body.get("enabled"),
        )
        account = in_transaction(pool, lambda c: accounts.change(c, user_id, wanted, caller=caller))
        log.info("user_changed", user_id=str(user_id), caller_id=str(caller.user_id), fields=_changeable(body))
        return account

    @routes.delete("/api/users/<uuid:user_id>")
    @guards.user
    @routes.response(204)
    def delete_user(user_id: UUID, *, caller: Identity) -> None:
        """Delete a user (self, admin); their waiting tasks are cancelled"""
        in_transaction(pool, lambda c: accounts.delete(c, user_id, caller=caller))
        log.info("user_deleted", user_id=str(user_id), caller_id=str(caller.user_id))


def _changeable(body: Body) -> list[str]:
    return sorted(set(body) & {"name", "email", "password", "enabled"})


def _add_administration(routes: ApiBlueprint, guards: Guards, pool: Pool, passwords: PasswordHasher) -> None:
    @routes.post("/api/users/")
    @guards.admin
    @routes.arguments(schemas.CreateUser)
    @routes.response(201, schemas.User)
    def create_user(body: Body, *, caller: Identity) -> tuple[Account, dict[str, str]]:
        """Create a user (admin)"""
        new = accounts.prepare(body, roles=body["roles"], passwords=passwords)
        account = in_transaction(pool, lambda c: accounts.create(c, new, caller=caller))
        log.info("user_created", user_id=str(account.id), caller_id=str(caller.user_id), roles=account.roles)
        return account, {"Location": f"/api/users/{account.id}"}

    @routes.put("/api/users/role/<uuid:user_id>")
    @guards.admin
    @routes.arguments(schemas.ChangeRoles)
    @routes.response(200, schemas.User)
    def change_roles(body: Body, user_id: UUID, *, caller: Identity) -> Account:
        """Set a user's roles (admin); ends their access tokens, not their logins"""
        wanted = Change(roles=body["roles"])
        account = in_transaction(pool, lambda c: accounts.change(c, user_id, wanted, caller=caller))
        log.info("roles_changed", user_id=str(user_id), caller_id=str(caller.user_id), roles=account.roles)
        return account
