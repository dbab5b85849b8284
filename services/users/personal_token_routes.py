"""Personal access tokens over HTTP."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import structlog

from libs.common.openapi import ApiBlueprint
from libs.common.paging import Page, to_page
from libs.common.postgres import Connection, Pool, in_transaction
from libs.common.tokens import Identity, TokenVerifier
from services.users import personal_tokens, schemas, sessions, store
from services.users.guards import Guards
from services.users.personal_tokens import NewPersonalToken, make_personal_token
from services.users.store import PersonalToken

log = structlog.get_logger()

Body = dict[str, Any]


def create_personal_token_routes(*, pool: Pool, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("tokens", __name__, description="Personal access tokens, for programs")
    guards = Guards(routes, verifier)

    @routes.post("/api/users/me/tokens")
    @guards.user
    @routes.arguments(schemas.CreatePersonalToken)
    @routes.response(201, schemas.NewPersonalToken)
    def create_token(body: Body, *, caller: Identity) -> tuple[Body, dict[str, str]]:
        """Create a personal access token; it is shown this once"""
        new = NewPersonalToken(
            id=uuid4(), name=body["name"], token=make_personal_token(), expires_at=body["expires_at"]
        )
        created = in_transaction(pool, lambda c: personal_tokens.create(c, new, caller=caller))
        log.info("personal_token_created", user_id=str(caller.user_id), token_id=str(new.id))
        return _with_token(created, new.token), {"Location": f"/api/users/me/tokens/{new.id}"}

    @routes.get("/api/users/me/tokens")
    @guards.user
    @routes.arguments(schemas.ListPersonalTokens, location="query")
    @routes.response(200, schemas.PersonalTokenPage)
    def list_tokens(query: Body, *, caller: Identity) -> Page:
        """List one's personal access tokens, newest first"""

        def work(connection: Connection) -> list[PersonalToken]:
            sessions.require_active(connection, caller)
            return store.list_personal_tokens(
                connection, account_id=caller.user_id, cursor=query["cursor"], limit=query["limit"] + 1
            )

        return to_page(in_transaction(pool, work), limit=query["limit"])

    @routes.delete("/api/users/me/tokens/<uuid:token_id>")
    @guards.user
    @routes.response(204)
    def delete_token(token_id: UUID, *, caller: Identity) -> None:
        """End a personal access token"""
        in_transaction(pool, lambda c: personal_tokens.delete(c, token_id, caller=caller))
        log.info("personal_token_deleted", user_id=str(caller.user_id), token_id=str(token_id))

    return routes


def _with_token(created: PersonalToken, token: str) -> Body:
    return {
        "id": created.id,
        "name": created.name,
        "created_at": created.created_at,
        "expires_at": created.expires_at,
        "last_used_at": created.last_used_at,
        "token": token,
    }
