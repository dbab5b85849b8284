"""What the gateway's component tests put around it: services that say what a test wants, and real tokens."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.polling import wait_until

REPOSITORY = Path(__file__).parents[3]
INTERNAL_TOKEN = "service-token"
START_SECONDS = 20


class TokenMaker:
    """Signs access tokens as users does, and as attackers might."""

    def __init__(self) -> None:
        self.kid = "test"
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwks(self) -> dict[str, Any]:
        public = RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": self.kid, "use": "sig", "alg": "RS256"}]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        return {
            "iss": "task-runner",
            "aud": "task-runner",
            "sub": str(uuid4()),
            "roles": ["user"],
            "iat": now,
            "exp": now + 3600,
            "jti": str(uuid4()),
            "sid": str(uuid4()),
            "ver": 1,
        } | changes

    def make(self, *, key: Any = None, algorithm: str = "RS256", kid: str | None = None, **claims: Any) -> str:
        headers = {"kid": kid or self.kid}
        return jwt.encode(self.claims(**claims), key or self.key, algorithm=algorithm, headers=headers)


@dataclass(frozen=True, slots=True)
class Received:
    """A request as a service got it. `port` is the other end's, the same for all requests of one connection."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    port: int

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


Answer = Callable[["StubHandler"], None]


@dataclass
class StubServices:
    """Users, scheduler and its loops on one port of this process; they echo, unless a test says otherwise."""

    tokens: TokenMaker
    received: list[Received] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    ended_sessions: set[str] = field(default_factory=set)
    personal_tokens: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def reset(self) -> None:
        for collection in (self.received, self.answers, self.ended_sessions, self.personal_tokens):
            collection.clear()

    def to(self, path: str) -> list[Received]:
        """What arrived for that path."""
        return [request for request in self.received if request.target.partition("?")[0] == path]

    @property
    def last(self) -> Received:
        """The last request that the gateway passed on, its own questions left out."""
        return [request for request in self.received if request.target.startswith("/api/")][-1]


class StubHandler(BaseHTTPRequestHandler):
    """`answer(status, body)` is all that most tests need; the socket is there for the others."""

    protocol_version = "HTTP/1.1"
    services: StubServices
    request_: Received

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def dispatch(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.request_ = Received(self.command, self.path, self.headers.items(), body, self.client_address[1])
        self.services.received.append(self.request_)
        path = self.path.partition("?")[0]
        answer = self.services.answers.get(path) or _DEFAULTS.get(path) or StubHandler.echo
        answer(self)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = dispatch  # noqa: N815  Its names.

    def answer(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def echo(self) -> None:
        self.answer(
            200, {"method": self.command, "target": self.path, "body": self.request_.body.decode("latin-1")}
        )

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def break_off(self) -> None:
        """Close the connection without a word more."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_args: object) -> None:
        """The tests' output is for the tests."""


def _answer_jwks(handler: StubHandler) -> None:
    handler.answer(200, handler.services.tokens.jwks())


def _answer_session(handler: StubHandler) -> None:
    assert handler.request_.header("Authorization") == f"Bearer {INTERNAL_TOKEN}"
    session = json.loads(handler.request_.body)["sessionId"]
    handler.answer(200, {"active": session not in handler.services.ended_sessions})


def _answer_exchange(handler: StubHandler) -> None:
    token = handler.services.personal_tokens.get(json.loads(handler.request_.body)["token"])
    handler.answer(200, {"token": token, "expiresIn": 60}) if token else handler.answer(401, {"code": "x"})


_DEFAULTS: dict[str, Answer] = {
    "/.well-known/jwks.json": _answer_jwks,
    "/internal/sessions/check": _answer_session,
    "/internal/tokens/exchange": _answer_exchange,
}


@contextmanager
def stub_services(tokens: TokenMaker) -> Iterator[StubServices]:
    services = StubServices(tokens)
    handler = type("Handler", (StubHandler,), {"services": services})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    services.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield services
    server.shutdown()
    server.server_close()


@contextmanager
def running_gateway(services: StubServices, redis_url: str, **settings: str) -> Iterator[str]:
    """The real gateway under the real gunicorn with its real settings; its URL."""
    process, url = start_gateway(services, redis_url, **settings)
    try:
        yield url
    finally:
        # At once; an orderly stop would wait for what the tests left under way.
        process.send_signal(signal.SIGQUIT)
        process.wait(timeout=30)


def start_gateway(services: StubServices, redis_url: str, **settings: str) -> tuple[subprocess.Popen[bytes], str]:
    """Its process, for whoever stops it, and its URL."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "BIND_PORT": str(port),
        "WEB_WORKER": "libs.common.gevent_worker.Worker",
        "USERS_URL": services.url,
        "SCHEDULER_URL": services.url,
        "SCHEDULER_LOOPS_URL": services.url,
        "SCHEDULER_LOGS_URL": services.url,
        "REDIS_URL": redis_url,
        "INTERNAL_TOKEN": INTERNAL_TOKEN,
        "LOG_LEVEL": "warning",
        **settings,
    }
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        "deploy/gunicorn.conf.py",
        "services.gateway.app:create_app()",
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _is_alive(process, url), seconds=START_SECONDS)
    except BaseException:
        process.kill()
        raise
    return process, url


def _is_alive(process: subprocess.Popen[bytes], url: str) -> bool:
    assert process.poll() is None, "the gateway ended at its start"
    try:
        return requests.get(f"{url}/livez", timeout=1).ok
    except requests.RequestException:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def unique(word: str) -> str:
    return f"{word}-{secrets.token_hex(6)}"


class Switch:
    """A TCP way to a server that a test can cut (connections are refused) or clog (they never get an answer)."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self.port = free_port()
        self._listener: socket.socket | None = None
        self._pairs: list[tuple[socket.socket, socket.socket | None]] = []
        self._is_clogged = False

    def connect(self) -> None:
        self._is_clogged = False
        self._drop_pairs()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def clog(self) -> None:
        self._is_clogged = True

    def cut(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self._drop_pairs()

    def _drop_pairs(self) -> None:
        for pair in self._pairs:
            for end in pair:
                if end is not None:
                    end.close()
        self._pairs.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = None if self._is_clogged else socket.create_connection(self._to)
            except OSError:
                return
            self._pairs.append((client, server))
            if server is not None:
                threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while True:
                readable, _, _ = select.select([client, server], [], [], 0.2)
                if self._is_clogged:
                    continue
                for end in readable:
                    data = end.recv(65536)
                    if not data:
                        return
                    (server if end is client else client).sendall(data)
        except (OSError, ValueError):
            return
        finally:
            client.close()
            server.close()
