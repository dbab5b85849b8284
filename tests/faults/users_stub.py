"""The users service as far as the scheduler needs it: published keys, tokens signed by them, and no deletions."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from libs.common.clock import utc_now

KID = "test"


class UsersStub:
    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        answers = {
            "/.well-known/jwks.json": {"keys": [{**public, "kid": KID, "use": "sig", "alg": "RS256"}]},
            "/internal/deletions": {"items": []},
        }
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(answers))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def make_token(self) -> str:
        """Of a user that nobody has heard of before."""
        now = utc_now()
        claims = {
            "iss": "task-runner",
            "aud": "task-runner",
            "sub": str(uuid.uuid4()),
            "roles": ["user"],
            "iat": now,
            "exp": now + timedelta(hours=12),
            "jti": uuid.uuid4().hex,
            "sid": str(uuid.uuid4()),
            "ver": 1,
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": KID})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _make_handler(answers: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path.partition("?")[0])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Tests print enough."""

    return Handler
