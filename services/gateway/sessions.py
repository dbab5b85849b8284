"""Who is calling: verifies the token, trades in a personal access token, and asks whether the session lives."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from flask import Request

from libs.common.config import Secret
from libs.common.errors import BadGateway, GatewayTimeout, Unauthorized, Unavailable
from libs.common.request_id import HEADER as REQUEST_ID
from libs.common.service_auth import service_headers
from libs.common.tokens import PERSONAL_TOKEN_PREFIX, Identity, TokenVerifier, read_bearer
from services.gateway.cache import Cache
from services.gateway.published import Access
from services.gateway.upstream import Call, Upstream

# Revocation reaches everyone within 5 s: an answer is believed for 4.
SESSION_SECONDS = 4
# A traded token lives 60 s, so each one that is passed on has at least half of that left.
EXCHANGE_SECONDS = 30

ACTIVE, REVOKED = "active", "revoked"
_PERSONAL_TOKEN = re.compile(rf"{PERSONAL_TOKEN_PREFIX}[A-Za-z0-9_-]{{16,256}}")


class Sessions:
    """Turns what a client sent into the access token to pass on."""

    def __init__(self, *, verifier: TokenVerifier, cache: Cache, users: Upstream, internal_token: Secret) -> None:
        self._verifier = verifier
        self._cache = cache
        self._users = users
        self._headers = service_headers(internal_token) | {"Content-Type": "application/json"}

    def authenticate(self, access: Access, request: Request) -> str | None:
        """The verified access token, or None for a route or a caller without one.

        Unauthorized when the token is missing, bad or revoked; Unavailable when nobody can tell.
        """
        if access is Access.ANYONE:
            return None
        sent = read_bearer(request)
        if sent is None:
            if access is Access.OPTIONAL_TOKEN:
                return None
            raise Unauthorized("This needs a token: log in, and send it as Authorization: Bearer TOKEN.")
        return self._authenticate_sent(sent)

    def watch(self, request: Request) -> Callable[[], bool]:
        """For an answer that lasts: a function that says whether the request's token still holds.

        It raises Unavailable when nobody can tell.
        """
        sent = read_bearer(request)

        def holds() -> bool:
            try:
                if sent is not None:
                    self._authenticate_sent(sent)
            except Unauthorized:
                return False
            return True

        return holds

    def _authenticate_sent(self, sent: str) -> str:
        if sent.startswith(PERSONAL_TOKEN_PREFIX):
            return self._authenticate_personal(sent)
        self._require_active(sent)
        return sent

    def _authenticate_personal(self, personal_token: str) -> str:
        token, is_new = self._exchange(personal_token)
        if not is_new and not self._is_active(self._verifier.verify(token)):
            # A new role ended what it was traded for, but not the personal token.
            token = self._exchange_anew(personal_token)
        self._require_active(token)
        return token

    def _require_active(self, token: str) -> None:
        if not self._is_active(self._verifier.verify(token)):
            raise Unauthorized("The session of this token has ended. Log in again.")

    def _is_active(self, identity: Identity) -> bool:
        key = f"session:{identity.session_id}:{identity.version}:{identity.user_id}"
        state = self._cache.find(key)
        if state is None:
            state = self._ask_for_state(identity)
            self._cache.store(key, state, seconds=SESSION_SECONDS)
        return state == ACTIVE

    def _ask_for_state(self, identity: Identity) -> str:
        question = {
            "userId": str(identity.user_id),
            "sessionId": str(identity.session_id),
            "version": identity.version,
        }
        status, answer = self._ask("/internal/sessions/check", question)
        if status != HTTPStatus.OK or not isinstance(answer.get("active"), bool):
            raise _unknown()
        return ACTIVE if answer["active"] else REVOKED

    def _exchange(self, personal_token: str) -> tuple[str, bool]:
        """What it is traded for, and whether that was traded just now."""
        if not _PERSONAL_TOKEN.fullmatch(personal_token):
            raise _not_valid()
        token = self._cache.find(_exchange_key(personal_token))
        return (self._exchange_anew(personal_token), True) if token is None else (token, False)

    def _exchange_anew(self, personal_token: str) -> str:
        status, answer = self._ask("/internal/tokens/exchange", {"token": personal_token})
        if status == HTTPStatus.UNAUTHORIZED:
            raise _not_valid()
        if status != HTTPStatus.OK or not isinstance(answer.get("token"), str):
            raise _unknown()
        token = str(answer["token"])
        self._cache.store(_exchange_key(personal_token), token, seconds=EXCHANGE_SECONDS)
        return token

    def _ask(self, path: str, question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request_id = structlog.contextvars.get_contextvars().get("request_id", "")
        headers = self._headers | {REQUEST_ID: request_id}
        call = Call("POST", path, headers, json.dumps(question).encode(), is_question=True)
        try:
            status, answer = self._users.fetch_json(call)
        except (BadGateway, GatewayTimeout, Unavailable) as error:
            raise _unknown() from error
        return status, answer if isinstance(answer, dict) else {}


def _exchange_key(personal_token: str) -> str:
    # A digest, so that whoever reads Redis can't use what they find for longer than its minute.
    return f"exchange:{hashlib.sha256(personal_token.encode()).hexdigest()}"


def _not_valid() -> Unauthorized:
    return Unauthorized("The personal access token is not valid or was deleted.")


def _unknown() -> Unavailable:
    return Unavailable("Nobody can say now whether this token still holds. Try again.", retry_after_seconds=2)
