"""A reverse proxy in front of several gateways, as small as it can be: what an operator's would do in a restart.

It opens a connection for each request, asks the next gateway when one breaks off and the method may be repeated,
and leaves out a gateway that was taken out.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.polling import wait_until

REPEATABLE = ("GET", "HEAD", "PUT", "DELETE")
SECONDS = 60.0
# Between the two connections each has its own.
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


class Balancer:
    """`ports` are those of the gateways on this machine."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._lock = threading.Lock()
        self._ports = list(ports)
        self._in_flight: Counter[int] = Counter()
        handler = type("Handler", (_Handler,), {"balancer": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Balancer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def without(self, port: int) -> Iterator[None]:
        """Meanwhile that gateway gets nothing; what it has in hand is waited for."""
        with self._lock:
            self._ports.remove(port)
        wait_until(lambda: self._in_flight[port] == 0, what="the gateway had nothing in hand", seconds=SECONDS)
        try:
            yield
        finally:
            with self._lock:
                self._ports.append(port)

    @contextmanager
    def pick(self) -> Iterator[int]:
        """The next gateway in turn."""
        with self._lock:
            port = self._ports.pop(0)
            self._ports.append(port)
            self._in_flight[port] += 1
        try:
            yield port
        finally:
            with self._lock:
                self._in_flight[port] -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    balancer: Balancer

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for is_last in (False, True):
            try:
                with self.balancer.pick() as port:
                    status, headers, content = self._ask(port, body)
            except (OSError, HTTPException):
                if is_last or self.command not in REPEATABLE:
                    status, headers, content = 502, [], b""
                    break
            else:
                break
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _forward  # noqa: N815  Its names.

    def _ask(self, port: int, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, self.path, body, headers | {"Connection": "close"})
            answer: HTTPResponse = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def log_message(self, *_: object) -> None:
        """Quiet."""
