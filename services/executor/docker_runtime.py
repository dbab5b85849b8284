"""The Docker engine as a `Runtime`: the only file that imports the docker SDK.

It uses the SDK's low-level client, one request a call: the high-level objects inspect a container before and
after most calls, which a busy machine feels. Being the only one that may know the SDK makes it a long file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

import docker
import docker.errors
import requests
import urllib3.exceptions
from docker.transport import UnixHTTPAdapter
from docker.utils import parse_repository_tag

from libs.common.clock import parse_time
from services.executor import runtime as rt
from services.executor.frames import FrameReader

# A create or a start on a loaded machine may take long; giving up on it early would only add doubt.
CALL_TIMEOUT_SECONDS = 120.0
# Saying who it is costs an engine nothing: one that is silent for so long isn't at work.
LOOK_TIMEOUT_SECONDS = 10.0
READ_BYTES = 64 * 1024
# How long after an exit the engine may still learn why.
LATE_EVENT_SECONDS = 1.0
KNOWN_DIGESTS = 512

_UNIX_SCHEME = "unix://"
_KILLED = 137
_NEVER = "0001-01-01T00:00:00Z"
_COMPOSE_PROJECT = "com.docker.compose.project"

# What the engine (20.10 and newer) says when the command is at fault, in its answers to create and start.
_COMMAND_FAULTS = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "not a directory",
    "is a directory",
    "exec format error",
    "no command specified",
    "argument list too long",
    "can't contain null",
    "invalid argument",
)
_REGISTRY_DENIALS = ("manifest unknown", "not found", "does not exist", "unauthorized", "denied")
# A name server that finds no such host, or a socket that may not be opened, is a network at fault.
_NETWORK_FAULTS = ("no such host", "permission denied")
_REFERENCE_FAULTS = ("invalid reference", "is a reserved name", "invalid port")

P = ParamSpec("P")
T = TypeVar("T")


def _translate(call: Callable[P, T]) -> Callable[P, T]:
    """Turn what only says that the engine didn't answer into EngineUnavailable."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except docker.errors.APIError as error:
            if error.status_code in (502, 503, 504):
                raise rt.EngineUnavailable(_explain(error)) from error
            if _is_other_version(error) and isinstance(args[0], DockerRuntime):
                # Another engine has taken its place: agree with it anew.
                args[0].close()
                raise rt.EngineUnavailable(_explain(error)) from error
            if error.is_server_error():
                raise rt.EngineFault(_explain(error)) from error
            raise rt.EngineRefused(_explain(error)) from error
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            docker.errors.DockerException,
            OSError,
        ) as error:
            raise rt.EngineUnavailable(f"{type(error).__name__}: {error}"[:300]) from error

    return wrapper


class DockerRuntime:
    """One client of one engine. Connects at its first call.

    A call that isn't answered within `call_seconds` raises EngineUnavailable, and the question who the engine is
    within `look_seconds`. A stream may be quiet for as long as it likes once it has begun.
    """

    def __init__(
        self,
        docker_host: str,
        *,
        call_seconds: float = CALL_TIMEOUT_SECONDS,
        look_seconds: float = LOOK_TIMEOUT_SECONDS,
    ) -> None:
        self._docker_host = docker_host
        self._call_seconds = call_seconds
        self._look_seconds = look_seconds
        self._opened: docker.APIClient | None = None
        self._digests: OrderedDict[str, str] = OrderedDict()

    @property
    def _client(self) -> docker.APIClient:
        if self._opened is None:
            self._opened = _open_client(self._docker_host, look_seconds=self._look_seconds)
            _limit(self._opened, self._call_seconds)
        return self._opened

    @_translate
    def describe(self) -> rt.EngineInfo:
        client = self._client
        _limit(client, self._look_seconds)
        try:
            info = client.info()
        finally:
            _limit(client, self._call_seconds)
        # A connection that was kept may lead to a daemon that is stopping.
        self.find_began()
        return rt.EngineInfo(
            engine_id=info["ID"],
            host=info["Name"],
            version=info["ServerVersion"],
            now=datetime.fromisoformat(info["SystemTime"]).astimezone(UTC),
        )

    @_translate
    def create(self, name: str, options: Mapping[str, Any]) -> str:
        try:
            answer = self._client.create_container_from_config(dict(options), name)
        except docker.errors.APIError as error:
            text = _explain(error)
            if error.status_code == 404 and "no such image" in text.lower():
                raise rt.ImageMissing(text) from error
            if error.status_code == 409:
                raise rt.NameTaken(text) from error
            if "invalid reference format" in text or "invalid repository name" in text:
                raise rt.InvalidReference(text) from error
            if _is_command_fault(text):
                raise rt.CommandRefused(text) from error
            raise
        return str(answer["Id"])

    @_translate
    def start(self, container_id: str) -> None:
        try:
            self._client.start(container_id)
        except docker.errors.APIError as error:
            text = _explain(error)
            if (error.status_code == 404 and "no such container" in text.lower()) or _is_being_removed(text):
                raise rt.ContainerGone(text) from error
            if _is_command_fault(text):
                raise rt.CommandRefused(text) from error
            raise

    def attach(self, container_id: str, *, on_open: rt.OnInterruptible) -> Iterator[tuple[rt.Stream, bytes]]:
        path = f"/containers/{container_id}/attach"
        response = self._open_stream("POST", path, {"stream": 1, "stdout": 1, "stderr": 1})
        return self._read_frames(response, on_open)

    def follow(self, container_id: str, *, on_open: rt.OnInterruptible) -> Iterator[tuple[rt.Stream, bytes]]:
        # The SDK's own `logs` inspects the container first and mixes the two streams.
        path = f"/containers/{container_id}/logs"
        response = self._open_stream("GET", path, {"follow": 1, "stdout": 1, "stderr": 1})
        return self._read_frames(response, on_open)

    @_translate
    def find_began(self) -> datetime | None:
        if not self._docker_host.startswith(_UNIX_SCHEME):
            return None
        path = self._docker_host.removeprefix(_UNIX_SCHEME)
        # A daemon makes its socket when it begins, or finds one that is older than itself.
        began = datetime.fromtimestamp(os.stat(path).st_ctime, UTC)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            # A queue that is full has somebody at its end.
            with contextlib.suppress(BlockingIOError):
                probe.connect(path)
        return began

    @_translate
    def find(self, name_or_id: str) -> rt.ContainerState | None:
        try:
            state = _read_state(self._client.inspect_container(name_or_id))
        except docker.errors.NotFound:
            return None
        except docker.errors.APIError as error:
            if not error.is_client_error() or _is_other_version(error):
                raise
            # Whatever it objects to, it is nothing of the container.
            raise rt.EngineFault(_explain(error)) from error
        if state.exited and state.exit_code == _KILLED and not state.oom_killed:
            return replace(state, oom_killed=self._saw_out_of_memory(state))
        return state

    @_translate
    def kill(self, container_id: str, signal: str) -> bool:
        try:
            self._client.kill(container_id, signal)
        except docker.errors.APIError as error:
            if error.status_code in (404, 409):
                return False
            raise
        return True

    @_translate
    def remove(self, container_id: str) -> None:
        try:
            self._client.remove_container(container_id, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise
            # Another removal of the same container is as good as ours.
            if "already in progress" not in _explain(error):
                raise rt.ContainerRuns(_explain(error)) from error

    def pull(self, image: str, *, limit: timedelta, on_open: rt.OnInterruptible) -> None:
        pull = _Pull(self._docker_host, image, limit=limit)
        interrupted = threading.Event()

        def interrupt() -> None:
            interrupted.set()
            pull.abandon()

        on_open(interrupt)
        ended = pull.wait()
        if interrupted.is_set():
            raise rt.PullInterrupted(image)
        if not ended:
            pull.abandon()
            raise rt.PullFailed(f"it took longer than {int(limit.total_seconds())} s")
        if pull.failure is not None:
            raise pull.failure
        if self.find_image(image) is None:
            raise rt.PullFailed("the registry broke off")

    @_translate
    def find_image(self, image: str) -> str | None:
        known = self._digests.get(image)
        if known is not None:
            self._digests.move_to_end(image)
            return known
        try:
            found = self._client.inspect_image(image)
        except docker.errors.NotFound:
            return None
        digests: Sequence[str] = found.get("RepoDigests") or ()
        digest = digests[0].partition("@")[2] if digests else str(found["Id"])
        # Only an id always means the same image; a tag may move.
        if image == found["Id"]:
            self._digests[image] = digest
            if len(self._digests) > KNOWN_DIGESTS:
                self._digests.popitem(last=False)
        return digest

    @_translate
    def list_containers(self, *, instance: str) -> Sequence[rt.ContainerSummary]:
        found = self._client.containers(
            all=True, filters={"label": [f"{rt.LABEL_INSTANCE}={instance}", rt.LABEL_RUN]}
        )
        return [
            rt.ContainerSummary(
                container_id=each["Id"],
                status=each["State"],
                created_at=datetime.fromtimestamp(each["Created"], UTC),
                labels=each["Labels"],
            )
            for each in found
        ]

    @_translate
    def ensure_network(self, network: rt.TaskNetwork) -> None:
        if self._find_network(network) is not None:
            return
        try:
            self._client.create_network(
                network.name,
                driver="bridge",
                options=_network_options(network),
                labels=dict(network.labels),
                check_duplicate=True,
                enable_ipv6=False,
            )
        except docker.errors.APIError as error:
            # Another executor on this engine may have been faster: the bridge's name is taken then.
            if self._find_network(network) is None:
                raise rt.EngineRefused(_explain(error)) from error

    @_translate
    def list_subnets(self, *, container: str, except_network: str) -> Sequence[str]:
        try:
            found = self._client.inspect_container(container)
        except docker.errors.NotFound:
            return []
        names = set(found["NetworkSettings"]["Networks"]) - {"host", "none"}
        project = (found["Config"].get("Labels") or {}).get(_COMPOSE_PROJECT)
        if project:
            mine = self._client.networks(filters={"label": f"{_COMPOSE_PROJECT}={project}"})
            names |= {each["Name"] for each in mine}
        subnets = [self._read_subnets(name) for name in sorted(names - {except_network})]
        return [subnet for each in subnets for subnet in each]

    @_translate
    def run_helper(self, name: str, options: Mapping[str, Any], *, limit: timedelta) -> rt.HelperResult:
        self._remove_by_force(name)
        try:
            container_id = self._client.create_container_from_config(dict(options), name)["Id"]
        except docker.errors.ImageNotFound as error:
            raise rt.ImageMissing(_explain(error)) from error
        try:
            self._client.start(container_id)
            ended = self._client.wait(container_id, timeout=math.ceil(limit.total_seconds()))
            output = self._read_kept_output(container_id)
            return rt.HelperResult(exit_code=ended["StatusCode"], output=output.decode(errors="replace"))
        finally:
            # What can't be removed now is when the next one is run.
            with contextlib.suppress(rt.RuntimeFailure):
                self._remove_by_force(container_id)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _read_kept_output(self, container_id: str) -> bytes:
        """All that a container has written so far."""
        params = {"stdout": 1, "stderr": 1}
        response = self._open_stream("GET", f"/containers/{container_id}/logs", params, may_be_quiet=False)
        return b"".join(data for _, data in self._iterate_frames(_Stream(response)))

    @_translate
    def _open_stream(
        self, method: str, path: str, params: Mapping[str, Any], *, may_be_quiet: bool = True
    ) -> requests.Response:
        client = self._client
        response = client.request(
            method,
            f"{client.base_url}/v{client.api_version}{path}",
            params=params,
            stream=True,
            timeout=self._call_seconds,
        )
        if response.status_code == 200:
            if may_be_quiet:
                _read_without_limit(client, response)
            return response
        with closing(response):
            text = _read_message(response)
        if response.status_code == 404 or _is_being_removed(text):
            raise rt.ContainerGone(text)
        raise rt.EngineRefused(text)

    @_translate
    def _remove_by_force(self, name_or_id: str) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            self._client.remove_container(name_or_id, force=True)

    def _read_frames(
        self, response: requests.Response, on_open: rt.OnInterruptible
    ) -> Iterator[tuple[rt.Stream, bytes]]:
        stream = _Stream(response)
        on_open(stream.interrupt)
        return self._iterate_frames(stream)

    def _iterate_frames(self, stream: _Stream) -> Iterator[tuple[rt.Stream, bytes]]:
        frames = FrameReader()
        with closing(stream):
            try:
                while data := self._read_some(stream.response):
                    yield from frames.feed(data)
            except rt.EngineUnavailable:
                if not stream.interrupted:
                    raise
        if stream.interrupted:
            raise rt.StreamBroken("it was broken off")
        if not frames.is_between:
            raise rt.StreamBroken("it ended within a frame")

    @_translate
    def _read_some(self, response: requests.Response) -> bytes:
        return bytes(response.raw.read1(READ_BYTES))

    def _saw_out_of_memory(self, state: rt.ContainerState) -> bool:
        """Whether the engine told so in an event: what it hears after the exit it doesn't put into the state.

        All times are the engine's own, and it answers at once when the last of them is over.
        """
        if state.started_at is None or state.finished_at is None:
            return False
        client = self._client
        params = {
            "since": f"{state.started_at.timestamp():.6f}",
            "until": f"{state.finished_at.timestamp() + LATE_EVENT_SECONDS:.6f}",
            "filters": json.dumps({"container": [state.container_id], "event": ["oom"]}),
        }
        try:
            response = client.get(
                f"{client.base_url}/v{client.api_version}/events", params=params, timeout=self._look_seconds
            )
        except requests.RequestException:
            # The exit is known, and worth more than why it came.
            return False
        return response.status_code == 200 and bool(response.content.strip())

    def _find_network(self, network: rt.TaskNetwork) -> str | None:
        for found in self._client.networks(names=[network.name]):
            if found["Name"] != network.name:
                continue
            options = found.get("Options") or {}
            wanted = _network_options(network)
            if {name: options.get(name) for name in wanted} != wanted or found.get("EnableIPv6"):
                raise rt.EngineRefused(
                    f"the network {network.name} exists with other options; remove it, or set TASK_NETWORK"
                )
            return str(found["Id"])
        return None

    def _read_subnets(self, name: str) -> list[str]:
        configs = self._client.inspect_network(name)["IPAM"]["Config"] or []
        return [each["Subnet"] for each in configs if "." in each.get("Subnet", "")]


class _Stream:
    """An answer that is read in one thread, and may be broken off from another for as long as it is."""

    def __init__(self, response: requests.Response) -> None:
        self.response = response
        self.interrupted = False
        self._closed = False
        self._lock = threading.Lock()

    def interrupt(self) -> None:
        # Once it has been read, its connection serves other calls.
        with self._lock:
            if not self._closed:
                self.interrupted = True
                _shut(self.response)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.response.close()


class _Pull:
    """One pull, on a connection and in a thread of its own.

    The engine sends nothing, not even the head of its answer, before the registry has answered it, so there is
    nothing that could be shut: to break it off means to turn away.
    """

    def __init__(self, docker_host: str, image: str, *, limit: timedelta) -> None:
        self.failure: Exception | None = None
        self._docker_host = docker_host
        self._image = image
        self._limit_seconds = limit.total_seconds()
        self._response: requests.Response | None = None
        self._abandoned = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="pull", daemon=True).start()

    def wait(self) -> bool:
        """True when it has ended or was abandoned, False when the limit is over."""
        return self._ended.wait(self._limit_seconds)

    def abandon(self) -> None:
        self._abandoned = True
        self._ended.set()
        if self._response is not None:
            _shut(self._response)

    def _run(self) -> None:
        try:
            self._pull()
        except Exception as failure:  # noqa: BLE001  It is raised again in the thread that waits.
            self.failure = failure
        finally:
            self._ended.set()

    @_translate
    def _pull(self) -> None:
        repository, tag = parse_repository_tag(self._image)
        with closing(_open_client(self._docker_host, look_seconds=LOOK_TIMEOUT_SECONDS)) as client:
            response = client.post(
                f"{client.base_url}/v{client.api_version}/images/create",
                params={"fromImage": repository, "tag": tag or "latest"},
                stream=True,
                # Who waits must be the first to see that it takes too long: a pull that breaks is begun again.
                timeout=(CALL_TIMEOUT_SECONDS, self._limit_seconds + LOOK_TIMEOUT_SECONDS),
            )
            with closing(response):
                self._response = response
                if response.status_code != 200:
                    raise _pull_error(response.status_code, _read_message(response))
                self._read_progress(response)

    def _read_progress(self, response: requests.Response) -> None:
        """Read to the end; the engine tells an error in a line of it."""
        rest = b""
        while not self._abandoned and (data := response.raw.read1(READ_BYTES)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _check_progress(line)
        _check_progress(rest)


class _OneConnection(UnixHTTPAdapter):
    """Keeps its connection for the next call; the SDK's own makes one for each URL, so for nearly each call."""

    def get_connection(self, url: str | bytes, proxies: object = None) -> Any:  # noqa: ARG002  The SDK's signature.
        return super().get_connection("http+docker://localhost")


def _open_client(docker_host: str, *, look_seconds: float) -> docker.APIClient:
    """A client that knows the engine's version already, for which it was asked within `look_seconds`."""
    limits: dict[str, Any] = {"timeout": look_seconds}
    client = docker.APIClient(base_url=docker_host, version="auto", **limits)
    # Looking for proxies and a .netrc before each call would cost a third of its processor time.
    client.trust_env = False
    if docker_host.startswith(_UNIX_SCHEME):
        socket_url = f"http+unix://{docker_host.removeprefix(_UNIX_SCHEME)}"
        client.mount("http+docker://", _OneConnection(socket_url))
    return client


def _limit(client: Any, seconds: float) -> None:
    """The SDK's types know whole seconds only."""
    client.timeout = seconds


def _read_without_limit(client: Any, response: requests.Response) -> None:
    """A quiet container is no reason to give up reading."""
    # The SDK's own way. A stream that has ended already has no socket any more.
    with contextlib.suppress(AttributeError):
        client._disable_socket_timeout(client._get_raw_response_socket(response))


def _shut(response: requests.Response) -> None:
    """End a read that another thread waits in; one that has ended already has nothing to be shut."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        response.raw.shutdown()


def _network_options(network: rt.TaskNetwork) -> dict[str, str]:
    return {
        "com.docker.network.bridge.name": network.bridge,
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.enable_ip_masquerade": "true",
    }


def _explain(error: docker.errors.APIError) -> str:
    return " ".join(str(error.explanation or error).split())[:300]


def _is_other_version(error: docker.errors.APIError) -> bool:
    return error.status_code == 400 and "client version" in _explain(error)


def _is_being_removed(text: str) -> bool:
    """Its name can still be found; nothing else of it can be had any more."""
    return "marked for removal" in text.lower()


def _is_command_fault(text: str) -> bool:
    lowered = text.lower()
    return any(fault in lowered for fault in _COMMAND_FAULTS)


def _check_progress(line: bytes) -> None:
    if not line.strip():
        return
    try:
        progress = json.loads(line)
    except ValueError as error:
        raise rt.EngineUnavailable("a pull's answer broke off") from error
    if "error" in progress:
        detail = progress.get("errorDetail") or {}
        raise _pull_error(int(detail.get("code") or 0), str(detail.get("message") or progress["error"]))


def _read_message(response: requests.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text


def _pull_error(status: int, text: str) -> rt.RuntimeFailure:
    text = " ".join(text.split())[:300]
    lowered = text.lower()
    if status == 400 or any(fault in lowered for fault in _REFERENCE_FAULTS):
        return rt.InvalidReference(text)
    if any(fault in lowered for fault in _NETWORK_FAULTS):
        return rt.PullFailed(text)
    if any(denial in lowered for denial in _REGISTRY_DENIALS):
        return rt.ImageNotFound(text)
    return rt.PullFailed(text)


def _read_state(found: Mapping[str, Any]) -> rt.ContainerState:
    state = found["State"]
    return rt.ContainerState(
        container_id=found["Id"],
        status=state["Status"],
        exit_code=state["ExitCode"],
        oom_killed=state["OOMKilled"],
        error=state["Error"],
        started_at=_read_time(state["StartedAt"]),
        finished_at=_read_time(state["FinishedAt"]),
        image_id=found["Image"],
        labels=found["Config"].get("Labels") or {},
    )


def _read_time(text: str) -> datetime | None:
    if text == _NEVER or not text:
        return None
    # The engine gives nanoseconds, Python takes six digits or fewer than that.
    head, _, fraction = text.rstrip("Z").partition(".")
    return parse_time(f"{head}.{fraction[:6] or '0'}Z")
