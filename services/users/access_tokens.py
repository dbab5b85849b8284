"""Issues access tokens: short-lived JWTs that every service verifies by itself (libs/common/tokens.py)."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import jwt

from libs.common.tokens import ALGORITHM
from services.users.keys import KeySet
from services.users.store import Account


class TokenIssuer:
    """Signs with the key set's active key."""

    def __init__(self, *, keys: KeySet, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    def issue(self, account: Account, *, session_id: UUID, life: timedelta, now: datetime) -> str:
        """A token of that login or personal access token. Unavailable while the signing key is missing."""
        key = self._keys.get_signing_key()
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(account.id),
            "roles": list(account.roles),
            "iat": now,
            "exp": now + life,
            "jti": str(uuid4()),
            "sid": str(session_id),
            "ver": account.version,
        }
        return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid})
