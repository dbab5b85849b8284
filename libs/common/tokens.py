"""Verifies access tokens: RS256 by published keys, every claim required, no key taken from the token itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import jwt
import requests
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from flask import Request
from jwt.algorithms import RSAAlgorithm

from libs.common.errors import Forbidden, Unauthorized, Unavailable

log = structlog.get_logger()

ALGORITHM = "RS256"
PERSONAL_TOKEN_PREFIX = "trp_"  # noqa: S105  A prefix, not a secret.
_REQUIRED = ["exp", "iat", "sub", "iss", "aud", "jti", "sid", "ver", "roles"]
_LEEWAY_SECONDS = 0
_BELIEVED_SECONDS = 30.0
_MOST_BELIEVED = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request, as the verified token says."""

    user_id: UUID
    roles: frozenset[str]
    session_id: UUID
    version: int
    token_id: str
    expires_at: datetime

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles


class KeySource(Protocol):
    """Where public keys come from: the users service's own files, or its JWKS over HTTP."""

    def find_key(self, kid: str) -> RSAPublicKey | None: ...


class TokenVerifier:
    """Turns a bearer token into an `Identity`, or raises Unauthorized.

    A token that was good is believed for some seconds, never past its end: it comes with each of its owner's
    requests, and checking it costs more than most of them.
    """

    def __init__(self, *, keys: KeySource, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._believed: dict[str, tuple[Identity, float]] = {}

    def verify(self, token: str) -> Identity:
        """Unauthorized when anything about the token is off; Unavailable when no keys can be had."""
        identity, until = self._believed.get(token, (None, 0.0))
        if identity is None or time.time() >= until:
            identity = self._check(token)
            if len(self._believed) >= _MOST_BELIEVED:
                self._believed.clear()
            until = min(time.time() + _BELIEVED_SECONDS, identity.expires_at.timestamp())
            self._believed[token] = (identity, until)
        return identity

    def _check(self, token: str) -> Identity:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.find_key(kid) if isinstance(kid, str) else None
            if key is None:
                raise Unauthorized("The token is signed with an unknown key. Log in again.")
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
            return _to_identity(claims)
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("The token has expired. Refresh it or log in again.") from error
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Unauthorized("The token is not valid. Log in again.") from error


def _to_identity(claims: Mapping[str, Any]) -> Identity:
    roles, version = claims["roles"], claims["ver"]
    if not isinstance(roles, list) or not isinstance(version, int):
        raise TypeError("roles must be a list and ver an integer")
    return Identity(
        user_id=UUID(str(claims["sub"])),
        roles=frozenset(map(str, roles)),
        session_id=UUID(str(claims["sid"])),
        version=version,
        token_id=str(claims["jti"]),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )


class JwksKeys:
    """The users service's published keys, fetched when first needed, when old, and for an unknown kid.

    `refresh_seconds` is how long a fetched set is trusted; `retry_seconds` bounds how often an unknown kid may
    cause a fetch. While users is down the last set stays in use.
    """

    def __init__(self, url: str, *, refresh_seconds: float = 30.0, retry_seconds: float = 1.0) -> None:
        self._url = url
        self._refresh_seconds = refresh_seconds
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._keys: dict[str, RSAPublicKey] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")

    def find_key(self, kid: str) -> RSAPublicKey | None:
        """The key of that id, or None. Unavailable when no set was ever fetched and none can be."""
        key = self._keys.get(kid)
        if key is None or time.monotonic() - self._fetched_at > self._refresh_seconds:
            # Whoever has a key goes on with it while another thread fetches; only a new one is waited for.
            self._fetch(wait=key is None)
        if not self._keys:
            raise Unavailable("The users service can't be reached to verify the token.", retry_after_seconds=2)
        return self._keys.get(kid)

    def _fetch(self, *, wait: bool) -> None:
        if not self._lock.acquire(blocking=wait):
            return
        try:
            if time.monotonic() - self._tried_at < self._retry_seconds:
                return
            response = requests.get(self._url, timeout=3)
            response.raise_for_status()
            self._keys = {key["kid"]: _to_key(key) for key in response.json()["keys"]}
            self._fetched_at = self._tried_at = time.monotonic()
        except (requests.RequestException, KeyError, ValueError, jwt.InvalidKeyError) as error:
            # Counted from the end: those who waited meanwhile would otherwise each wait out one of their own.
            self._tried_at = time.monotonic()
            log.warning("jwks_fetch_failed", error=type(error).__name__)
        finally:
            self._lock.release()


def _to_key(key: Mapping[str, Any]) -> RSAPublicKey:
    public = RSAAlgorithm.from_jwk(dict(key))
    if not isinstance(public, RSAPublicKey):
        raise jwt.InvalidKeyError("not a public RSA key")
    return public


def read_bearer(request: Request) -> str | None:
    """The token of `Authorization: Bearer …`, None without that header. Unauthorized on another scheme."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Send the token as Authorization: Bearer TOKEN.")
    return token.strip()


def require_identity(verifier: TokenVerifier, request: Request) -> Identity:
    """The verified caller. Unauthorized without a valid token."""
    token = read_bearer(request)
    if token is None:
        raise Unauthorized("This needs a token: log in, and send it as Authorization: Bearer TOKEN.")
    return verifier.verify(token)


def require_admin(verifier: TokenVerifier, request: Request) -> Identity:
    """The verified caller, who is an admin. Forbidden otherwise."""
    identity = require_identity(verifier, request)
    if not identity.is_admin:
        raise Forbidden("This needs the role admin.", code="role_lacking")
    return identity
