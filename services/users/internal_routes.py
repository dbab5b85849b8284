"""What our other services may ask, with the service token: `/internal/…`. The gateway never forwards it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Blueprint, request

from libs.common.clock import utc_now
from libs.common.config import Secret
from libs.common.openapi import read_json
from libs.common.postgres import Pool, in_transaction
from libs.common.service_auth import require_service_token
from services.users import accounts, personal_tokens, schemas, store
from services.users.access_tokens import TokenIssuer

Body = dict[str, Any]


def create_internal_routes(*, pool: Pool, issuer: TokenIssuer, internal_token: Secret) -> Blueprint:
    routes = Blueprint("internal", __name__, url_prefix="/internal")
    check_session, exchange_token = schemas.CheckSession(), schemas.ExchangeToken()
    deletions_query, user_facts = schemas.DeletionsQuery(), schemas.UserFacts()
    deletions = schemas.Deletion(many=True)

    @routes.before_request
    def only_services() -> None:
        require_service_token(internal_token)

    @routes.post("/sessions/check")
    def sessions_check() -> Body:
        body = check_session.load(read_json(request))
        active = in_transaction(
            pool,
            lambda c: store.session_is_active(
                c, account_id=body["user_id"], session_id=body["session_id"], version=body["version"]
            ),
        )
        return {"active": active}

    @routes.post("/tokens/exchange")
    def tokens_exchange() -> Body:
        body = exchange_token.load(read_json(request))
        now = utc_now()
        exchange = in_transaction(pool, lambda c: personal_tokens.exchange(c, body["token"], now=now))
        token = issuer.issue(exchange.account, session_id=exchange.token_id, life=exchange.life, now=now)
        return {"token": token, "expiresIn": int(exchange.life.total_seconds())}

    @routes.get("/users/<uuid:user_id>")
    def get_user(user_id: UUID) -> Body:
        account = in_transaction(pool, lambda c: accounts.get(c, user_id))
        facts: Body = user_facts.dump(account)
        return facts

    @routes.get("/deletions")
    def list_deletions() -> Body:
        query = deletions_query.load(request.args.to_dict())
        found = in_transaction(pool, lambda c: store.list_deletions(c, since=query["since"]))
        return {"items": deletions.dump(found)}

    return routes
