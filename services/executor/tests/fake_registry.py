"""An image registry on the loopback interface, with one tiny image, and all the ways to refuse it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(text: str) -> tuple[bytes, bytes]:
    """A layer with one file; plain and compressed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("hello")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
    plain = buffer.getvalue()
    return plain, gzip.compress(plain, mtime=0)


class FakeRegistry:
    """`HOST/found:1` exists, `HOST/denied:1` is refused, `HOST/slow:1` doesn't come, all others are unknown.

    `content` makes the image, and with it its digest, a test's own. `asked_slow` is set when somebody waits.
    """

    def __init__(self, content: str) -> None:
        plain, packed = _layer(content)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/hello"]},
                "rootfs": {"type": "layers", "diff_ids": [_digest(plain)]},
            }
        ).encode()
        self._blobs = {_digest(config): config, _digest(packed): packed}
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "size": len(config), "digest": _digest(config)},
                "layers": [{"mediaType": LAYER, "size": len(packed), "digest": _digest(packed)}],
            }
        ).encode()
        self.digest = _digest(self._manifest)
        self.asked_slow = threading.Event()
        self._closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/v2/":
            return 200, "application/json", b"{}"
        if path.startswith("/v2/found/manifests/"):
            return 200, MANIFEST, self._manifest
        if path.startswith("/v2/found/blobs/") and (blob := self._blobs.get(path.rpartition("/")[2])):
            return 200, "application/octet-stream", blob
        if path.startswith("/v2/denied/"):
            return 401, "application/json", _error("DENIED", "requested access to the resource is denied")
        if path.startswith("/v2/slow/"):
            self.asked_slow.set()
            self._closed.wait(30)
        return 404, "application/json", _error("MANIFEST_UNKNOWN", "manifest unknown")

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(with_body=True)

            def do_HEAD(self) -> None:
                self._send(with_body=False)

            def _send(self, *, with_body: bool) -> None:
                status, content_type, body = registry._answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                if content_type == MANIFEST:
                    self.send_header("Docker-Content-Digest", registry.digest)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                """Quiet."""

        return Handler


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
