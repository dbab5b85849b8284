"""Signing up, logging in and out, and refreshing over HTTP."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import structlog

from libs.common.clock import utc_now
from libs.common.openapi import ApiBlueprint
from libs.common.postgres import Connection, Pool, in_transaction
from libs.common.tokens import Identity, TokenVerifier
from services.users import accounts, schemas, sessions
from services.users.access_tokens import TokenIssuer
from services.users.guards import Guards
from services.users.passwords import PasswordHasher
from services.users.roles import Role
from services.users.sessions import RefreshToken, Session

log = structlog.get_logger()

Body = dict[str, Any]


class TokenPairs:
    """The two tokens that a session's start and each refresh give out, and how long they live."""

    def __init__(self, issuer: TokenIssuer, *, access_life: timedelta, refresh_life: timedelta) -> None:
        self._issuer = issuer
        self._access_life = access_life
        self._refresh_life = refresh_life

    def make_refresh_token(self, now: datetime) -> RefreshToken:
        return sessions.make_refresh_token(now=now, life=self._refresh_life)

    def to_body(self, session: Session, refresh: RefreshToken, now: datetime) -> Body:
        """The user and the tokens, as `schemas.LoggedInUser` shows them."""
        account = session.account
        token = self._issuer.issue(account, session_id=session.id, life=self._access_life, now=now)
        return {
            "id": account.id,
            "name": account.name,
            "email": account.email,
            "roles": account.roles,
            "enabled": account.enabled,
            "created_at": account.created_at,
            "updated_at": account.updated_at,
            "token": token,
            "token_type": "Bearer",
            "expires_in": int(self._access_life.total_seconds()),
            "refresh_token": refresh.token,
        }


def create_session_routes(
    *, pool: Pool, passwords: PasswordHasher, verifier: TokenVerifier, tokens: TokenPairs
) -> ApiBlueprint:
    routes = ApiBlueprint("sessions", __name__, description="Signing up, logging in and out")
    guards = Guards(routes, verifier)
    _add_starting(routes, pool, passwords, tokens)
    _add_going_on(routes, guards, pool, tokens)
    return routes


def _add_starting(routes: ApiBlueprint, pool: Pool, passwords: PasswordHasher, tokens: TokenPairs) -> None:
    @routes.post("/api/users/signup")
    @routes.arguments(schemas.Signup)
    @routes.response(201, schemas.LoggedInUser)
    def sign_up(body: Body) -> tuple[Body, dict[str, str]]:
        """Become a user, and be logged in"""
        new = accounts.prepare(body, roles=[Role.USER], passwords=passwords)
        now, session_id = utc_now(), uuid4()
        refresh = tokens.make_refresh_token(now)

        def work(connection: Connection) -> Session:
            account = accounts.add(connection, new)
            return sessions.start(connection, account, session_id=session_id, refresh=refresh)

        session = in_transaction(pool, work)
        log.info("user_signed_up", user_id=str(new.id))
        return tokens.to_body(session, refresh, now), {"Location": f"/api/users/{new.id}"}

    @routes.post("/api/users/login")
    @routes.arguments(schemas.Login)
    @routes.response(200, schemas.LoggedInUser)
    def log_in(body: Body) -> Body:
        """Log in with email and password"""
        found = in_transaction(pool, lambda c: accounts.find_by_email(c, body["email"]))
        checked = sessions.check_password(found, body["password"], passwords)
        now, session_id = utc_now(), uuid4()
        refresh = tokens.make_refresh_token(now)
        session = in_transaction(
            pool, lambda c: sessions.log_in(c, checked, session_id=session_id, refresh=refresh)
        )
        sessions.LOGINS.labels("succeeded").inc()
        log.info("user_logged_in", user_id=str(checked.id), session_id=str(session_id))
        return tokens.to_body(session, refresh, now)


def _add_going_on(routes: ApiBlueprint, guards: Guards, pool: Pool, tokens: TokenPairs) -> None:
    @routes.post("/api/users/refresh")
    @routes.arguments(schemas.Refresh)
    @routes.response(200, schemas.LoggedInUser)
    def refresh_session(body: Body) -> Body:
        """Exchange a refresh token, once, for new tokens"""
        now = utc_now()
        refresh = tokens.make_refresh_token(now)
        session = in_transaction(
            pool, lambda c: sessions.refresh_session(c, body["refresh_token"], refresh=refresh)
        )
        if session is None:
            raise sessions.RefreshRefused
        log.info("session_refreshed", user_id=str(session.account.id), session_id=str(session.id))
        return tokens.to_body(session, refresh, now)

    @routes.post("/api/users/logout")
    @guards.user
    @routes.response(204)
    def log_out(*, caller: Identity) -> None:
        """End the session of this token"""
        in_transaction(pool, lambda c: sessions.log_out(c, caller))
        log.info("user_logged_out", user_id=str(caller.user_id), session_id=str(caller.session_id))
