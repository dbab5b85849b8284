"""The fake engine's process: a server on a UNIX socket that can be told to misbehave, to stop and to come back."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from services.executor.tests.fake_engine.api import STREAMS, Answer, Api, NotDone, Request, read_request
from services.executor.tests.fake_engine.faults import Fault, Refusal, Script
from services.executor.tests.fake_runtime import FakeEngine

_LOOK_SECONDS = 0.01


class FakeDaemon:
    """Serves `engine` at `docker_host` while it is up; `script` says which requests go wrong."""

    def __init__(self, path: Path) -> None:
        self.engine = FakeEngine()
        self.api = Api(self.engine)
        self.script = Script()
        self.docker_host = f"unix://{path}"
        self._path = path
        self._server: _Server | None = None
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.up()

    def up(self) -> None:
        """Begin to listen, at a socket of its own time."""
        assert self._server is None
        self._path.unlink(missing_ok=True)
        server = _Server(str(self._path), self._make_handler())
        threading.Thread(target=server.serve_forever, args=(_LOOK_SECONDS,), daemon=True).start()
        self._server = server

    def stop_listening(self) -> None:
        """The first thing that an engine does when it is told to stop; what is connected is still served."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self._path.unlink(missing_ok=True)

    def end_containers(self, exit_code: int | None = None) -> None:
        """What it does next, unless it may leave them running: SIGTERM, and who doesn't heed it is killed.

        An engine that was killed notes such ends when it is back, with an exit code that it can't know.
        """
        with self.engine.changed:
            for container in self.engine.containers.values():
                if container.status == "running":
                    killed = 137 if container.program.ignores_sigterm else container.program.sigterm_exit_code
                    self.engine.finish(container, killed if exit_code is None else exit_code)

    def down(self) -> None:
        """Gone: no connection lives on."""
        self.stop_listening()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.engine.break_streams()

    def restart(self, *, exit_code: int | None = None) -> None:
        """An orderly stop and a start."""
        self.stop_listening()
        self.end_containers(exit_code)
        self.down()
        self.up()

    def crash(self, *, exit_code: int = 0) -> None:
        """A kill and a start, at which it finds that its containers are no more."""
        self.down()
        self.end_containers(exit_code)
        self.up()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        daemon = self

        class Handler(_Handler):
            api = daemon.api
            script = daemon.script

            def setup(self) -> None:
                with daemon._lock:
                    daemon._connections.add(self.request)
                super().setup()

            def finish(self) -> None:
                with daemon._lock:
                    daemon._connections.discard(self.request)
                with contextlib.suppress(OSError):
                    super().finish()

        return Handler


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a daemon that is down."""


class _HungUp(Exception):
    """This connection is over."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    api: Api
    script: Script

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, *_args: object) -> None:
        """Quiet."""

    def address_string(self) -> str:
        return "a socket"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            request = read_request(self.command, self.path, body)
            fault = self.script.take(request.operation, self.api.names(request)) or Fault()
            self._answer(request, fault)
        except NotDone as refused:
            self._send(refused.answer)
        except (_HungUp, OSError):
            self._hang_up()

    def _answer(self, request: Request, fault: Fault) -> None:
        if fault.done == "late":
            begun = threading.Event()
            late = threading.Thread(target=self._do_late, args=(request, fault, begun), daemon=True)
            late.start()
            begun.wait()
        is_stream = request.operation in STREAMS
        answer = Answer(200)
        if fault.done == "first" and not is_stream:
            answer = self.api.call(request)
        match fault.answer:
            case Refusal(status, message):
                self._send(Answer(status, {"message": message}))
            case "hang up":
                raise _HungUp
            case "silence":
                self._wait_gone()
                raise _HungUp
            case None if is_stream:
                self._send_stream(request, fault)
            case None if request.operation == "pull" and fault.cut_after is not None:
                self._send_chunks(iter([json.dumps(answer.fields).encode()]), fault)
            case None:
                self._send(_changed(answer, fault))

    def _do_late(self, request: Request, fault: Fault, begun: threading.Event) -> None:
        with self.api.under_way(request):
            begun.set()
            if fault.until is not None:
                fault.until.wait()
            else:
                self._wait_gone()
            # Nobody hears any more whether it went well.
            with contextlib.suppress(NotDone):
                if request.operation == "create":
                    self.api.create_late(request)
                elif request.operation not in STREAMS:
                    self.api.call(request)

    def _send(self, answer: Answer) -> None:
        data = b"" if answer.fields is None else json.dumps(answer.fields).encode()
        self.send_response(answer.status)
        if answer.status not in (204, 304):
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_stream(self, request: Request, fault: Fault) -> None:
        frames = self.api.read(request)
        if request.operation == "logs":
            self._send_chunks(frames, fault)
            return
        # An attach takes the connection over: its end is the stream's end.
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.raw-stream")
        self.end_headers()
        self._write_until_cut(frames, fault, self.wfile.write)
        raise _HungUp

    def _send_chunks(self, frames: Iterator[bytes], fault: Fault) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._write_until_cut(frames, fault, lambda data: self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data)))
        self.wfile.write(b"0\r\n\r\n")

    def _write_until_cut(self, frames: Iterator[bytes], fault: Fault, write: Any) -> None:
        left = fault.cut_after
        for frame in frames:
            data = frame if left is None else frame[:left]
            if data:
                write(data)
            if left is None:
                continue
            left -= len(data)
            if left == 0:
                break
        if left != 0 or fault.cut == "gently":
            return
        if fault.cut == "silently":
            self._wait_gone()
        raise _HungUp

    def _wait_gone(self) -> None:
        """Until the client, or the daemon, has turned away."""
        with contextlib.suppress(OSError, ValueError), selectors.PollSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            selector.select()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _changed(answer: Answer, fault: Fault) -> Answer:
    if not fault.shows:
        return answer
    return Answer(answer.status, answer.fields | {"State": answer.fields["State"] | dict(fault.shows)})
