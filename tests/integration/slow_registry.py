"""A registry that takes its time: it stands before the real one, and holds what it is told to."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

_PASSED_ON = ("Content-Type", "Docker-Content-Digest", "Docker-Distribution-Api-Version")
_LONGEST_SECONDS = 120.0


class SlowRegistry:
    """Everything of the registry at `behind`, which comes `delay_seconds` late, or, without, not before the close.

    `asked` is set when somebody waits for a part of an image.
    """

    def __init__(self, behind: str, *, delay_seconds: float | None = None) -> None:
        self.asked = threading.Event()
        self._behind = behind
        self._delay_seconds = delay_seconds
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def name(self, reference: str) -> str:
        """The same image, to be had here."""
        return reference.replace(self._behind, f"127.0.0.1:{self._server.server_port}")

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _hold(self, path: str) -> None:
        if "/manifests/" in path or "/blobs/" in path:
            self.asked.set()
            self._released.wait(_LONGEST_SECONDS if self._delay_seconds is None else self._delay_seconds)

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass_on()

            def do_HEAD(self) -> None:
                self._pass_on()

            def _pass_on(self) -> None:
                registry._hold(self.path)
                headers = {"Accept": ", ".join(self.headers.get_all("Accept", []))}
                url = f"http://{registry._behind}{self.path}"
                answer = requests.request(str(self.command), url, headers=headers, timeout=30)
                self.send_response(answer.status_code)
                for name in _PASSED_ON:
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                length = str(len(answer.content)) if self.command == "GET" else answer.headers["Content-Length"]
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_args: object) -> None:
                """Quiet."""

        return Handler
