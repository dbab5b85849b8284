"""The keys that sign and verify access tokens: one PEM file each, named after its key id."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jwt.algorithms import RSAAlgorithm

from libs.common.config import DEVELOPMENT_KEY_ID
from libs.common.errors import Unavailable
from libs.common.tokens import ALGORITHM

log = structlog.get_logger()

MIN_KEY_BITS = 2048
# Of zarf/keys/development.pem, which everybody can read: a copy under another name is refused as well.
DEVELOPMENT_KEY_FINGERPRINT = "656a4f7d7fb36709989669bad7511e46ef431434e54a35f66e383ec45da6ba94"
_FILE_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})\.pem")
_PKCS8 = b"-----BEGIN PRIVATE KEY-----"


class KeyRefused(Exception):
    """The file holds no key that may be used; the message says why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    private: RSAPrivateKey


class KeySet:
    """Every `<kid>.pem` of a folder verifies, `active_kid` signs. A `KeySource` (libs/common/tokens.py).

    The folder is read again when a key is asked for and the last look is older than `look_again_seconds`, so a
    file that is dropped in or taken away counts without a restart. A file that can't be used is logged and left
    out. Ids are looked up in a dict, never joined to a path.
    """

    def __init__(
        self, folder: Path, *, active_kid: str, is_production: bool, look_again_seconds: float = 1.0
    ) -> None:
        self._folder = folder
        self._active_kid = active_kid
        self._is_production = is_production
        self._look_again_seconds = look_again_seconds
        self._lock = threading.Lock()
        self._seen: Mapping[str, tuple[int, int, int]] = {}
        self._keys: Mapping[str, RSAPrivateKey] = {}
        self._looked_at = float("-inf")

    def find_key(self, kid: str) -> RSAPublicKey | None:
        key = self._current().get(kid)
        return None if key is None else key.public_key()

    def get_signing_key(self) -> SigningKey:
        """Unavailable while the active key's file is missing or refused."""
        key = self._current().get(self._active_kid)
        if key is None:
            raise Unavailable("The key that signs tokens is missing.", retry_after_seconds=5)
        return SigningKey(self._active_kid, key)

    def check_active_key(self) -> None:
        """KeyRefused when the active key can't be used; for the start and for `/readyz`."""
        if self._active_kid in self._current():
            return
        path = self._folder / f"{self._active_kid}.pem"
        if not _FILE_NAME.fullmatch(path.name):
            raise KeyRefused(f"{self._active_kid!r} is not a key id: use letters, digits, '.', '_' and '-'")
        read_key(path, is_production=self._is_production)
        raise KeyRefused(f"{path} can't be used")

    def publish(self) -> dict[str, Any]:
        """The key set as `/.well-known/jwks.json` has it: public halves only."""
        return {"keys": [_to_jwk(kid, key.public_key()) for kid, key in sorted(self._current().items())]}

    def _current(self) -> Mapping[str, RSAPrivateKey]:
        with self._lock:
            if time.monotonic() - self._looked_at >= self._look_again_seconds:
                self._look()
                self._looked_at = time.monotonic()
            return self._keys

    def _look(self) -> None:
        files = {path.stem: path for path in _list_files(self._folder)}
        seen = {kid: _state_of(path) for kid, path in files.items()}
        if seen == self._seen:
            return
        keys = {}
        for kid, path in files.items():
            try:
                keys[kid] = read_key(path, is_production=self._is_production)
            except KeyRefused as error:
                log.warning("key_refused", kid=kid, reason=str(error))
        log.info("keys_loaded", kids=sorted(keys), active_kid=self._active_kid)
        self._keys, self._seen = keys, seen


def read_key(path: Path, *, is_production: bool) -> RSAPrivateKey:
    """The private key of a PEM file (PKCS#8, RSA, at least 2048 bits). KeyRefused otherwise."""
    if is_production and path.stem == DEVELOPMENT_KEY_ID:
        raise KeyRefused(f"{path.name} is the development key, which everybody has; make another: make keys")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise KeyRefused(f"{path} can't be read: {error.strerror}") from error
    if not text.lstrip().startswith(_PKCS8):
        raise KeyRefused(f"{path} is not an unencrypted PKCS#8 private key (convert it: openssl pkey -in …)")
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError) as error:
        raise KeyRefused(f"{path} is damaged") from error
    if not isinstance(key, RSAPrivateKey) or key.key_size < MIN_KEY_BITS:
        raise KeyRefused(f"{path} is not an RSA key of at least {MIN_KEY_BITS} bits")
    if is_production and fingerprint(key.public_key()) == DEVELOPMENT_KEY_FINGERPRINT:
        raise KeyRefused(f"{path} is a copy of the development key, which everybody has")
    return key


def fingerprint(key: RSAPublicKey) -> str:
    """SHA-256 of the public key in DER, in hex."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _list_files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name) and path.is_file()]
    except OSError as error:
        log.warning("keys_unreadable", folder=str(folder), reason=error.strerror)
        return []


def _state_of(path: Path) -> tuple[int, int, int]:
    try:
        state = path.stat()
    except OSError:
        return (0, 0, 0)
    return (state.st_ino, state.st_size, state.st_mtime_ns)


def _to_jwk(kid: str, key: RSAPublicKey) -> dict[str, Any]:
    numbers: dict[str, Any] = RSAAlgorithm.to_jwk(key, as_dict=True)
    return {"kty": "RSA", "kid": kid, "use": "sig", "alg": ALGORITHM, "n": numbers["n"], "e": numbers["e"]}
