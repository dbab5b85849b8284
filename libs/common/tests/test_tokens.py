"""Every attack on a token that we know of ends as Unauthorized."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from datetime import timedelta
from typing import Any
from unittest import mock

import jwt
import pytest
import requests
import time_machine
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask, request
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from libs.common.clock import utc_now
from libs.common.errors import Forbidden, Unauthorized, Unavailable
from libs.common.tokens import JwksKeys, TokenVerifier, read_bearer, require_admin, require_identity

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC_PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
KID = "one"
USER_ID = uuid.uuid4()


class StaticKeys:
    def find_key(self, kid: str) -> rsa.RSAPublicKey | None:
        return {KID: KEY.public_key()}.get(kid)


def a_verifier() -> TokenVerifier:
    return TokenVerifier(keys=StaticKeys(), issuer="task-runner", audience="task-runner")


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones; a change to None leaves the claim out."""
    now = int(utc_now().timestamp())
    good = {
        "iss": "task-runner",
        "aud": "task-runner",
        "sub": str(USER_ID),
        "roles": ["user"],
        "iat": now,
        "exp": now + 60,
        "jti": str(uuid.uuid4()),
        "sid": str(uuid.uuid4()),
        "ver": 1,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def sign(payload: dict[str, Any], *, key: Any = KEY, algorithm: str = "RS256", **header: Any) -> str:
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": KID, **header})


def encode(part: Any) -> str:
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def test_a_good_token_tells_who_it_is():
    identity = a_verifier().verify(sign(claims(roles=["user", "admin"], ver=7)))

    assert (identity.user_id, identity.version, identity.is_admin) == (USER_ID, 7, True)


def refused(token: str) -> None:
    with pytest.raises(Unauthorized):
        a_verifier().verify(token)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
def test_a_token_without_a_signature_is_refused(algorithm: str):
    head = encode({"alg": algorithm, "typ": "JWT", "kid": KID})

    refused(f"{head}.{encode(claims())}.")
    refused(f"{head}.{encode(claims())}.{sign(claims()).rpartition('.')[2]}")


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused():
    # PyJWT won't sign like this, so an attacker does it by hand.
    signed = f"{encode({'alg': 'HS256', 'typ': 'JWT', 'kid': KID})}.{encode(claims())}"
    signature = hmac.new(PUBLIC_PEM, signed.encode(), hashlib.sha256).digest()

    refused(f"{signed}.{encode(signature)}")


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
def test_another_algorithm_is_refused_even_with_our_key(algorithm: str):
    refused(sign(claims(), algorithm=algorithm))


def test_a_token_of_an_elliptic_curve_key_is_refused():
    refused(sign(claims(), key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"))


@pytest.mark.parametrize(
    "kid", ["two", "", "../../x", "../zarf/keys/one", "/dev/null", "one\x00", "ONE", " one", "' OR 1=1 --"]
)
def test_an_unknown_key_id_is_refused(kid: str):
    refused(sign(claims(), kid=kid))


@pytest.mark.parametrize("kid", [None, 1, ["one"], {"one": 1}, True])
def test_a_key_id_that_is_no_text_is_refused(kid: Any):
    signed = f"{encode({'alg': 'RS256', 'typ': 'JWT', 'kid': kid})}.{encode(claims())}"

    refused(f"{signed}.{encode(b'signature')}")


def test_a_token_without_a_key_id_is_refused():
    refused(jwt.encode(claims(), KEY, algorithm="RS256"))


def test_a_token_of_another_key_under_our_id_is_refused():
    refused(sign(claims(), key=OTHER_KEY))


def test_keys_that_the_token_brings_along_are_ignored():
    own = json.loads(RSAAlgorithm.to_jwk(OTHER_KEY.public_key()))

    refused(sign(claims(), key=OTHER_KEY, jwk=own, jku="http://evil.example/jwks", x5u="http://evil.example/x"))


def test_an_expired_token_is_refused():
    refused(sign(claims(exp=int(utc_now().timestamp()) - 1)))


def test_a_token_that_was_good_is_refused_from_the_second_of_its_end():
    verifier, token = a_verifier(), sign(claims())
    verifier.verify(token)

    with time_machine.travel(utc_now() + timedelta(seconds=61)), pytest.raises(Unauthorized, match="expired"):
        verifier.verify(token)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody-else"},
        {"aud": "somebody-else"},
        {"aud": []},
        {"aud": {}},
        {"iat": int(utc_now().timestamp()) + 3600},
        {"nbf": int(utc_now().timestamp()) + 3600},
        {"exp": "tomorrow"},
        {"exp": -1},
        {"exp": 10**30},
        {"sub": "root"},
        {"sub": 1},
        {"sid": "x"},
        {"sid": 5},
        {"roles": "admin"},
        {"roles": {"admin": True}},
        {"ver": "1"},
        {"ver": 1.5},
    ],
)
def test_wrong_claims_are_refused(changes: dict[str, Any]):
    refused(sign(claims(**changes)))


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "roles", "iat", "exp", "jti", "sid", "ver"])
def test_a_missing_claim_is_refused(name: str):
    refused(sign(claims(**{name: None})))


def test_a_changed_payload_is_refused():
    head, payload, signature = sign(claims()).split(".")
    changed = json.loads(base64.urlsafe_b64decode(payload + "==")) | {"roles": ["admin"]}

    refused(f"{head}.{encode(changed)}.{signature}")


@given(st.integers(0, 400), st.characters(codec="ascii", categories=["L", "N"]))
def test_a_token_with_any_letter_changed_is_refused(position: int, letter: str):
    token = sign(claims())
    changed = token[:position] + letter + token[position + 1 :]
    if changed == token:
        return

    refused(changed)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: f"{encode(raw)}.{encode(raw)}.x"))
def test_any_other_text_is_refused(text: str):
    refused(text)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b", "a.b.c.d", "é.é.é", "[" * 5000, encode(b"[" * 50_000)])
def test_what_is_no_token_is_refused(token: str):
    refused(token)


def test_deeply_nested_headers_are_refused():
    refused(f"{encode(b'[' * 100_000)}.{encode(claims())}.x")


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


def with_header(app: Flask, value: str | None):
    return app.test_request_context(headers={} if value is None else {"Authorization": value})


def test_no_header_is_no_token(app: Flask):
    with with_header(app, None):
        assert read_bearer(request) is None
        with pytest.raises(Unauthorized):
            require_identity(a_verifier(), request)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_without_case(app: Flask, scheme: str):
    with with_header(app, f"{scheme} abc"):
        assert read_bearer(request) == "abc"


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic abc", "abc"])
def test_another_scheme_is_refused(app: Flask, value: str):
    with with_header(app, value), pytest.raises(Unauthorized):
        read_bearer(request)


def test_admins_are_told_from_users(app: Flask):
    with with_header(app, f"Bearer {sign(claims(roles=['user', 'admin']))}"):
        assert require_admin(a_verifier(), request).user_id == USER_ID
    with with_header(app, f"Bearer {sign(claims(roles=['user']))}"), pytest.raises(Forbidden):
        require_admin(a_verifier(), request)


class FakeUsers:
    """Answers the key set; `down` makes it fail."""

    def __init__(self, **keys: rsa.RSAPrivateKey) -> None:
        self.keys = keys
        self.down = False
        self.asked = 0

    def get(self, _url: str, **_options: Any) -> mock.Mock:
        self.asked += 1
        if self.down:
            raise requests.ConnectionError
        keys = [
            {**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": kid} for kid, key in self.keys.items()
        ]
        response = mock.Mock(spec=requests.Response)
        response.json.return_value = {"keys": keys}
        response.status_code = 200
        return response


@pytest.fixture
def users():
    users = FakeUsers(one=KEY)
    with mock.patch.object(requests, "get", users.get):
        yield users


def test_the_published_keys_are_fetched_once(users: FakeUsers):
    keys = JwksKeys("http://users/jwks")

    found = [keys.find_key("one") for _ in range(3)]

    assert all(key is not None for key in found)
    assert users.asked == 1


def test_an_unknown_key_id_fetches_again_but_not_each_time(users: FakeUsers):
    keys = JwksKeys("http://users/jwks", retry_seconds=0)
    keys.find_key("one")
    users.keys["two"] = OTHER_KEY

    assert keys.find_key("two") is not None

    patient = JwksKeys("http://users/jwks", retry_seconds=3600)
    users.asked = 0
    assert [patient.find_key("three") for _ in range(5)] == [None] * 5
    assert users.asked == 1


def test_the_last_keys_stay_in_use_while_users_is_down(users: FakeUsers):
    keys = JwksKeys("http://users/jwks", refresh_seconds=0, retry_seconds=0)
    keys.find_key("one")
    users.down = True

    assert keys.find_key("one") is not None


def test_a_removed_key_is_forgotten_with_the_next_fetch(users: FakeUsers):
    keys = JwksKeys("http://users/jwks", refresh_seconds=0, retry_seconds=0)
    keys.find_key("one")
    users.keys = {"two": OTHER_KEY}

    keys.find_key("one")

    assert keys.find_key("one") is None


def test_without_any_keys_nobody_is_let_in(users: FakeUsers):
    users.down = True

    with pytest.raises(Unavailable):
        JwksKeys("http://users/jwks").find_key("one")
