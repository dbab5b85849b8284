"""The part of the engine's HTTP API that `docker_runtime.py` uses, over the containers of a FakeEngine.

Words, statuses and shapes are those that a real engine (20.10) was seen to give.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from services.executor import runtime as rt
from services.executor.tests.fake_runtime import IMAGE_ID, FakeContainer, FakeEngine

ROUTES = [
    ("version", "GET", r"/version"),
    ("info", "GET", r"/info"),
    ("create", "POST", r"/containers/create"),
    ("list", "GET", r"/containers/json"),
    ("inspect", "GET", r"/containers/(?P<name>[^/]+)/json"),
    ("start", "POST", r"/containers/(?P<name>[^/]+)/start"),
    ("attach", "POST", r"/containers/(?P<name>[^/]+)/attach"),
    ("logs", "GET", r"/containers/(?P<name>[^/]+)/logs"),
    ("wait", "POST", r"/containers/(?P<name>[^/]+)/wait"),
    ("kill", "POST", r"/containers/(?P<name>[^/]+)/kill"),
    ("remove", "DELETE", r"/containers/(?P<name>[^/]+)"),
    ("image", "GET", r"/images/(?P<name>.+)/json"),
    ("pull", "POST", r"/images/create"),
    ("networks", "GET", r"/networks"),
    ("network", "GET", r"/networks/(?P<name>[^/]+)"),
    ("create_network", "POST", r"/networks/create"),
    ("events", "GET", r"/events"),
]
STREAMS = ("attach", "logs")
_STREAM_NUMBERS = {"stdout": 1, "stderr": 2}
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Request:
    operation: str
    name: str
    query: Mapping[str, str]
    body: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`fields` None is an answer without a body."""

    status: int
    fields: Any = None


class NotDone(Exception):
    """The engine refuses; `answer` says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.answer = Answer(status, {"message": message})


def read_request(method: str, target: str, body: bytes) -> Request:
    url = urlsplit(target)
    versioned = re.fullmatch(r"(?:/v([0-9.]+))?(/.*)", unquote(url.path))
    assert versioned is not None
    version, path = versioned.groups()
    for operation, verb, pattern in ROUTES:
        if verb == method and (match := re.fullmatch(pattern, path)):
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            name = match.groupdict().get("name", "") or query.get("name", "")
            return Request(operation, name, query, json.loads(body or b"{}"), version)
    raise NotDone(404, f"page not found: {method} {path}")


class Api:
    """Does what a request asks. One that is late keeps its promise: a name is taken from the moment that a create
    has come, and a container that is being started isn't removed."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.version = self.oldest_version = "1.41"
        self.network: dict[str, Any] = {}
        self._reserved: set[str] = set()
        self._starting: set[str] = set()

    def names(self, request: Request) -> tuple[str, ...]:
        """By what the container of a request may be called."""
        container = self._find(request.name)
        return (request.name,) if container is None else (container.name, container.container_id)

    @contextmanager
    def under_way(self, request: Request) -> Iterator[None]:
        """While a request is late."""
        mine = {"create": self._reserved, "start": self._starting}.get(request.operation, set())
        with self.engine.changed:
            mine.add(request.name)
        try:
            yield
        finally:
            with self.engine.changed:
                mine.discard(request.name)
                self.engine.changed.notify_all()

    def call(self, request: Request) -> Answer:
        """Raises NotDone."""
        if request.version is not None and request.version < self.oldest_version:
            told = f"client version {request.version} is too old."
            raise NotDone(400, f"{told} Minimum supported API version is {self.oldest_version}")
        act: Callable[[Request], Answer] = getattr(self, f"_{request.operation}")
        with self.engine.changed:
            self.engine.calls.append(request.operation)
            return act(request)

    def read(self, request: Request) -> Iterator[bytes]:
        """The frames of a container's output, until it has ended. Raises NotDone before the first."""
        container = self._get(request.name)
        with self.engine.changed:
            self.engine.calls.append(request.operation)
            container.reads += 1
        return self._read_frames(container)

    def _read_frames(self, container: FakeContainer) -> Iterator[bytes]:
        opened_at = self.engine.broken_streams

        def wait_for_output(position: int) -> list[tuple[rt.Stream, bytes]]:
            with self.engine.changed:
                self.engine.changed.wait_for(
                    lambda: (
                        len(container.output) > position
                        or container.status == "exited"
                        or self.engine.broken_streams > opened_at
                    )
                )
                return container.output[position:]

        position = 0
        while fresh := wait_for_output(position):
            position += len(fresh)
            for stream, data in fresh:
                yield struct.pack(">BxxxI", _STREAM_NUMBERS[stream], len(data)) + data

    def _version(self, _request: Request) -> Answer:
        return Answer(200, {"ApiVersion": self.version, "MinAPIVersion": self.oldest_version, "Version": "20"})

    def _info(self, _request: Request) -> Answer:
        return Answer(
            200,
            {
                "ID": "engine-1",
                "Name": "here",
                "ServerVersion": "20.10.24",
                "SystemTime": _format(self.engine.now()),
            },
        )

    def _create(self, request: Request) -> Answer:
        image = request.body["Image"]
        name = request.name or f"helper-{len(self.engine.history)}"
        if ":::" in image:
            raise NotDone(400, "invalid reference format")
        if image not in self.engine.images:
            raise NotDone(404, f"No such image: {image}")
        if name in self._reserved or self._find(name) is not None:
            raise NotDone(409, f'Conflict. The container name "/{name}" is already in use by container "…".')
        container = self.engine.add(name, options=dict(request.body))
        return Answer(201, {"Id": container.container_id, "Warnings": []})

    def create_late(self, request: Request) -> None:
        """The create whose name was taken when it came."""
        with self.engine.changed:
            self._reserved.discard(request.name)
            self.call(request)

    def _start(self, request: Request) -> Answer:
        container = self._get(request.name)
        if container.status == "running":
            return Answer(304)
        if container.program.refused is not None:
            raise NotDone(400, container.program.refused)
        self.engine.begin(container)
        return Answer(204)

    def _inspect(self, request: Request) -> Answer:
        return Answer(200, _inspected(self._get(request.name)))

    def _list(self, request: Request) -> Answer:
        labels = json.loads(request.query.get("filters", "{}")).get("label", [])
        found = [each for each in self.engine.containers.values() if _has_labels(each, labels)]
        return Answer(
            200,
            [
                {
                    "Id": each.container_id,
                    "State": each.status,
                    "Created": int(each.created_at.timestamp()),
                    "Labels": each.options["Labels"],
                }
                for each in found
            ],
        )

    def _wait(self, request: Request) -> Answer:
        container = self._get(request.name)
        self.engine.changed.wait_for(lambda: container.status == "exited")
        return Answer(200, {"Error": None, "StatusCode": container.exit_code})

    def _kill(self, request: Request) -> Answer:
        container = self._find(request.name)
        if container is None:
            raise NotDone(404, f"Cannot kill container: {request.name}: No such container: {request.name}")
        if container.status != "running":
            raise NotDone(409, f"Cannot kill container: {request.name}: Container is not running")
        signal = request.query["signal"]
        container.signals.append(signal)
        if signal == "SIGKILL":
            self.engine.finish(container, 137)
        elif not container.program.ignores_sigterm:
            self.engine.finish(container, container.program.sigterm_exit_code)
        return Answer(204)

    def _remove(self, request: Request) -> Answer:
        container = self._get(request.name)
        self.engine.changed.wait_for(lambda: container.container_id not in self._starting)
        if container.status == "running" and request.query.get("force") not in ("1", "True", "true"):
            raise NotDone(409, f"You cannot remove a running container {container.container_id}. Stop it first.")
        if container.status == "running":
            self.engine.finish(container, 137)
        self.engine.containers.pop(container.container_id, None)
        self.engine.changed.notify_all()
        return Answer(204)

    def _events(self, request: Request) -> Answer:
        """Those of memory that ran out, of one container; the only ones that anybody asks for."""
        (wanted,) = json.loads(request.query["filters"])["container"]
        return Answer(200, {"Action": "oom", "id": wanted} if self._get(wanted).program.oom_event else None)

    def _image(self, request: Request) -> Answer:
        if request.name not in (IMAGE_ID, *self.engine.images):
            raise NotDone(404, f"no such image: {request.name}: No such image: {request.name}")
        return Answer(200, {"Id": IMAGE_ID, "RepoDigests": ["registry/image@sha256:digest"]})

    def _pull(self, request: Request) -> Answer:
        """A line, as the last of a pull's: what went before says nothing."""
        name, tag = request.query["fromImage"], request.query["tag"]
        image = name if tag == "latest" else f"{name}:{tag}"
        error = self.engine.registry.get(image, rt.ImageNotFound("manifest unknown"))
        if error is not None:
            return Answer(200, {"error": str(error), "errorDetail": {"message": str(error)}})
        self.engine.images.add(image)
        return Answer(200, {"status": f"Downloaded newer image for {image}"})

    def _networks(self, _request: Request) -> Answer:
        return Answer(200, [self.network] if self.network else [])

    def _network(self, request: Request) -> Answer:
        if request.name != self.network.get("Name"):
            raise NotDone(404, f"network {request.name} not found")
        return Answer(200, self.network)

    def _create_network(self, request: Request) -> Answer:
        self.network = {
            "Id": "network-1",
            "EnableIPv6": False,
            "IPAM": {"Config": [{"Subnet": "172.30.0.0/16"}]},
        } | dict(request.body)
        return Answer(201, {"Id": "network-1", "Warning": ""})

    def _find(self, name_or_id: str) -> FakeContainer | None:
        with self.engine.changed:
            for each in self.engine.containers.values():
                if name_or_id and name_or_id in (each.name, each.container_id):
                    return each
        return None

    def _get(self, name_or_id: str) -> FakeContainer:
        container = self._find(name_or_id)
        if container is None:
            raise NotDone(404, f"No such container: {name_or_id}")
        return container


def _has_labels(container: FakeContainer, wanted: list[str]) -> bool:
    labels = container.options.get("Labels") or {}
    return all(
        labels.get(key) == value if equals else key in labels
        for key, equals, value in (each.partition("=") for each in wanted)
    )


def _inspected(container: FakeContainer) -> dict[str, Any]:
    return {
        "Id": container.container_id,
        "Name": f"/{container.name}",
        "Image": IMAGE_ID,
        "Config": {"Labels": dict(container.options.get("Labels") or {})},
        "NetworkSettings": {"Networks": {}},
        "State": {
            "Status": container.status,
            "ExitCode": container.exit_code,
            "OOMKilled": container.program.oom_killed,
            "Error": "",
            "StartedAt": _format(container.started_at),
            "FinishedAt": _format(container.finished_at),
        },
    }


def _format(at: datetime | None) -> str:
    """Nanoseconds, as the engine has them."""
    return _NEVER if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
