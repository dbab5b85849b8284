from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import HMACAlgorithm, RSAAlgorithm

from tests.integration.client import Api, User, expect, expect_problem
from tests.integration.stack import REPOSITORY
from tests.polling import wait_until

pytestmark = pytest.mark.integration

OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def encode(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


class Forger:
    """Knows everything that is public, and a valid token's claims; lacks the private key."""

    def __init__(self, token: str, jwks: dict[str, Any]) -> None:
        self.token = token
        self.claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
        self.kid: str = jwt.get_unverified_header(token)["kid"]
        self.public_key: Any = RSAAlgorithm.from_jwk(next(key for key in jwks["keys"] if key["kid"] == self.kid))

    def sign(self, key: Any = OTHER_KEY, *, kid: str | None = None, **claims: Any) -> str:
        return jwt.encode(self.claims | claims, key, algorithm="RS256", headers={"kid": kid or self.kid})


def unsigned(forger: Forger) -> str:
    return f"{encode({'alg': 'none', 'typ': 'JWT', 'kid': forger.kid})}.{encode(forger.claims)}."


def signed_with_the_public_key(forger: Forger) -> str:
    public = forger.public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = f"{encode({'alg': 'HS256', 'typ': 'JWT', 'kid': forger.kid})}.{encode(forger.claims)}"
    signature = HMACAlgorithm(HMACAlgorithm.SHA256).sign(signed.encode(), public)
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def tampered(forger: Forger) -> str:
    header, _, signature = forger.token.split(".")
    return f"{header}.{encode(forger.claims | {'roles': ['admin']})}.{signature}"


def with_its_own_key(forger: Forger) -> str:
    headers = {"kid": "mine", "jwk": RSAAlgorithm.to_jwk(OTHER_KEY.public_key(), as_dict=True)}
    return jwt.encode(forger.claims, OTHER_KEY, algorithm="RS256", headers=headers)


ATTACKS: dict[str, Callable[[Forger], str]] = {
    "alg none": unsigned,
    "HS256 with the public key": signed_with_the_public_key,
    "unknown kid": lambda forger: forger.sign(kid="nobody"),
    "kid ../../x": lambda forger: forger.sign(kid="../../x"),
    "kid /dev/null": lambda forger: forger.sign(kid="/dev/null"),
    "another key": lambda forger: forger.sign(),
    "a key of its own": with_its_own_key,
    "tampered": tampered,
    "no signature": lambda forger: forger.token.rpartition(".")[0] + ".",
    "a piece of it": lambda forger: forger.token[:-10],
    "nonsense": lambda _: "not.a.token",
    "an unknown personal access token": lambda _: "trp_" + "a" * 43,
}


@pytest.fixture(scope="module")
def forger(user: User) -> Forger:
    jwks = expect(Api(user.api.url).get("/.well-known/jwks.json"), 200)
    return Forger(str(user.api.token), jwks)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("path", ["/api/tasks/", "/api/users/me"])
def test_a_forged_token_is_refused(anyone: Api, forger: Forger, attack: str, path: str):
    expect_problem(anyone.get(path, token=ATTACKS[attack](forger)), 401)


def test_tokens_say_what_the_api_promises(forger: Forger):
    assert {"iss", "aud", "sub", "roles", "iat", "exp", "jti"} <= set(forger.claims)
    assert jwt.get_unverified_header(forger.token)["alg"] == "RS256"


def test_published_keys_are_public_halves_only(anyone: Api):
    for key in expect(anyone.get("/.well-known/jwks.json"), 200)["keys"]:
        assert {"kty", "kid", "n", "e"} <= set(key) <= {"kty", "kid", "n", "e", "use", "alg"}


@pytest.fixture
def second_key() -> Iterator[tuple[str, rsa.RSAPrivateKey]]:
    """A key that was dropped into the keys' folder, by its id."""
    kid = f"test-{time.time_ns()}"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = REPOSITORY / "zarf" / "keys" / f"{kid}.pem"
    _write(path, key)
    yield kid, key
    path.unlink()


def _write(path: Path, key: rsa.RSAPrivateKey) -> None:
    draft = path.with_suffix(".new")
    draft.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    draft.chmod(0o644)
    draft.rename(path)


def test_a_second_key_that_is_dropped_in_verifies_without_a_restart(anyone: Api, forger: Forger, second_key):
    kid, key = second_key

    wait_until(
        lambda: kid in [one["kid"] for one in expect(anyone.get("/.well-known/jwks.json"), 200)["keys"]],
        what="the key was published",
        seconds=10,
    )
    token = forger.sign(key, kid=kid)

    for path in ("/api/users/me", "/api/tasks/"):
        wait_until(
            lambda path=path: anyone.get(path, token=token).status_code == 200,  # type: ignore[misc]
            what="the key verified",
            seconds=10,
        )
    # The claims of a token are checked with whichever key it is signed.
    now = int(time.time())
    for wrong in ({"exp": now - 1}, {"aud": "others"}, {"iss": "others"}, {"sub": "admin"}):
        expect_problem(anyone.get("/api/tasks/", token=forger.sign(key, kid=kid, **wrong)), 401)


def test_forged_identity_headers_change_nothing(user: User, stranger: User, admin: User):
    task = user.api.create_task("true", scheduledAt="2030-01-01T00:00:00Z")
    forged = {
        "X-User-Id": user.id,
        "X-User-Roles": "admin",
        "X-User": user.id,
        "X-Forwarded-User": admin.id,
        "X-Auth-Roles": "admin",
    }

    expect_problem(stranger.api.get(f"/api/tasks/{task['id']}", headers=forged), 404)
    expect_problem(stranger.api.get("/api/users/", headers=forged), 403)
    expect_problem(Api(user.api.url).get("/api/tasks/", headers=forged), 401)
    own = expect(
        stranger.api.post("/api/tasks/", {"image": "x", "scheduledAt": "2030-01-01T00:00:00Z"}, headers=forged),
        201,
    )
    assert own["userId"] == stranger.id
    for api, task_id in ((user.api, task["id"]), (stranger.api, own["id"])):
        expect(api.delete(f"/api/tasks/{task_id}"), 204)
