"""Tokens that mean nothing by themselves: refresh tokens and personal access tokens. Only hashes are stored."""

from __future__ import annotations

import hashlib
import secrets


def make_token(prefix: str) -> str:
    """The prefix and 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def hash_token(token: str) -> bytes:
    # A fast hash will do: nobody can guess 256 random bits.
    return hashlib.sha256(token.encode()).digest()
