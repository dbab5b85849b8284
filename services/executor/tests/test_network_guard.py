"""The walls around the task network: what they are made of, and on a real engine that they hold."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import docker
import pytest

from services.executor.docker_runtime import DockerRuntime
from services.executor.network_guard import (
    GuardFailed,
    GuardSettings,
    NetworkGuard,
    guard_options,
    instance_tag,
    task_network,
)
from services.executor.runtime import HelperResult
from services.executor.tests.fake_runtime import FakeEngine, FakeRuntime
from services.executor.tests.guard_rules import GUARD_IMAGE, remove_rules, run_on_host

DOCKER_HOST = "unix:///var/run/docker.sock"
METADATA_ADDRESS = "169.254.169.254"


def package_mirror() -> str:
    """The URL of the package mirror that this machine itself uses: a place outside that surely answers it."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next(line for line in listed.splitlines() if line.startswith("http://"))


def make_settings(**changes: Any) -> GuardSettings:
    values: dict[str, Any] = {
        "instance": "test",
        "executor_id": "executor-1",
        "network": "test-tasks",
        "image": GUARD_IMAGE,
        "allow": (),
        "deny": (),
    }
    return GuardSettings(**(values | changes))


def test_the_bridge_has_a_name_that_a_packet_filter_can_match():
    bridge = task_network(make_settings(instance="a-very-long-name-of-a-compose-project")).bridge

    assert len(bridge) <= 15
    assert bridge == instance_tag("a-very-long-name-of-a-compose-project")
    assert bridge != instance_tag("another")


def test_the_guard_has_the_hosts_network_and_no_more_rights_than_it_needs():
    host = guard_options(make_settings(), control_subnets=["172.30.0.0/16"])["HostConfig"]

    assert host["NetworkMode"] == "host"
    assert host["CapDrop"] == ["ALL"]
    assert set(host["CapAdd"]) == {"NET_ADMIN", "NET_RAW"}
    assert not {"Binds", "Mounts", "Privileged"} & set(host)


def test_the_guard_is_told_every_network():
    settings = make_settings(allow=("10.0.0.0/8",), deny=("10.1.0.0/16", "10.2.0.0/16"))

    environment = guard_options(settings, control_subnets=["172.30.0.0/16"])["Env"]

    assert "ALLOW=10.0.0.0/8" in environment
    assert "DENY=10.1.0.0/16 10.2.0.0/16" in environment
    assert "CONTROL=172.30.0.0/16" in environment


def test_a_guard_that_fails_says_why(monkeypatch: pytest.MonkeyPatch):
    runtime = FakeRuntime(FakeEngine())
    monkeypatch.setattr(runtime, "run_helper", lambda *_args, **_kwargs: HelperResult(1, "no packet filter"))

    with pytest.raises(GuardFailed, match="no packet filter"):
        NetworkGuard(make_settings()).apply(runtime)


class Site:
    """A guarded task network beside a control network with a published server on it."""

    def __init__(self, client: docker.DockerClient, cleanup: ExitStack) -> None:
        self._client = client
        self._cleanup = cleanup
        self._name = f"guard-test-{uuid.uuid4().hex[:8]}"
        self.settings = make_settings(instance=self._name, network=f"{self._name}-tasks")
        self._runtime = DockerRuntime(DOCKER_HOST)
        self._cleanup.callback(remove_rules, client, self._name)
        self._cleanup.callback(self._remove_task_network)
        self._control = client.networks.create(f"{self._name}-control", driver="bridge")
        self._cleanup.callback(self._control.remove)
        self.server = self._start(
            ["sh", "-c", "echo inside > index.html && httpd -f -p 8000"],
            network=self._control.name,
            ports={"8000/tcp": None},
        )
        self._control.reload()
        self.control_subnet = str(self._control.attrs["IPAM"]["Config"][0]["Subnet"])
        self.server_address = self._address(self.server, f"{self._name}-control")
        self.published_port = int(self.server.ports["8000/tcp"][0]["HostPort"])

    def guard(self, **changes: Any) -> None:
        """Apply the guard as the executor does, with the server as the executor's own container."""
        self.settings = make_settings(instance=self._name, network=f"{self._name}-tasks", **changes)
        self._runtime.ensure_network(task_network(self.settings))
        subnets = self._runtime.list_subnets(container=self.server.id, except_network=self.settings.network)
        assert subnets == [self.control_subnet]
        options = guard_options(self.settings, control_subnets=subnets)
        result = self._runtime.run_helper(f"walls-{uuid.uuid4().hex[:8]}", options, limit=timedelta(seconds=60))
        assert result.exit_code == 0, result.output

    def host_addresses(self) -> list[str]:
        """The host's address towards outside, and those of its bridges."""
        networks = [self._client.networks.get(name) for name in ("bridge", self.settings.network)]
        subnets = [self.control_subnet, *(each.attrs["IPAM"]["Config"][0]["Subnet"] for each in networks)]
        return [_outer_address(), *(str(ipaddress.ip_network(subnet)[1]) for subnet in subnets)]

    def start_task(self, *argv: str) -> Any:
        return self._start(list(argv), network=self.settings.network)

    def task_address(self, container: Any) -> str:
        return self._address(container, self.settings.network)

    def in_task(self, script: str) -> tuple[int, str]:
        """Run a script in a task container: its exit code and output."""
        container = self._start(["sh", "-c", script], network=self.settings.network)
        code = container.wait(timeout=60)["StatusCode"]
        return code, container.logs().decode()

    def reached(self, *targets: tuple[str, int]) -> list[str]:
        """Those of the targets (address, port) that a task container can connect to, all tried at once."""
        tries = [
            f"(nc -w 2 {address} {port} -e true 2>/dev/null && echo {address}:{port}) &"
            for address, port in targets
        ]
        _, output = self.in_task(f"{' '.join(tries)} wait")
        return sorted(line for line in output.split() if ":" in line)

    def reaches(self, address: str, port: int) -> bool:
        return self.reached((address, port)) == [f"{address}:{port}"]

    def rules(self) -> str:
        tag = instance_tag(self._name).upper()
        chains = (f"{tag}-IN", f"{tag}-FW", "INPUT", "DOCKER-USER")
        return run_on_host(self._client, "; ".join(f"iptables -S {chain} | grep -i {tag}" for chain in chains))

    def _remove_task_network(self) -> None:
        for network in self._client.networks.list(names=[self.settings.network]):
            network.remove()

    def _start(self, command: list[str], **options: Any) -> Any:
        container = self._client.containers.run("busybox", command, detach=True, cap_drop=["ALL"], **options)
        self._cleanup.callback(container.remove, force=True)
        container.reload()
        return container

    @staticmethod
    def _address(container: Any, network: str) -> str:
        address: str = container.attrs["NetworkSettings"]["Networks"][network]["IPAddress"]
        return address


@pytest.fixture
def site(engine: docker.DockerClient) -> Iterator[Site]:
    with ExitStack() as cleanup:
        yield Site(engine, cleanup)


@pytest.mark.component
def test_a_task_reaches_neither_the_host_nor_the_control_plane_nor_another_task(site: Site):
    site.guard()
    neighbour = site.start_task("nc", "-ll", "-p", "8000", "-e", "true")

    reached = site.reached(
        *((address, site.published_port) for address in site.host_addresses()),
        (site.server_address, 8000),
        (site.task_address(neighbour), 8000),
        (METADATA_ADDRESS, 80),
    )

    assert reached == []


@pytest.mark.component
def test_the_same_addresses_answer_without_the_guard(site: Site, listen: Callable[[], int]):
    """Else the test above would hold for a network that is simply broken."""
    site._runtime.ensure_network(task_network(site.settings))

    address, port = _outer_address(), listen()
    assert site.reached((address, site.published_port), (address, port)) == sorted(
        [f"{address}:{site.published_port}", f"{address}:{port}"]
    )

    site.guard()

    assert site.reached((address, site.published_port), (address, port)) == []


@pytest.mark.component
def test_a_task_reaches_outside_by_name(site: Site):
    site.guard()

    code, output = site.in_task(f"wget -q -T 10 -O /dev/null {package_mirror().rstrip('/')}/dists/stable/Release")

    assert code == 0, output


@pytest.mark.component
def test_a_task_has_no_ipv6_address(site: Site):
    site.guard()

    _, output = site.in_task("cat /proc/net/if_inet6 | grep -v ' lo$'; true")

    assert output == ""


@pytest.mark.component
def test_the_operator_may_allow_and_deny_networks(site: Site):
    outside = socket.gethostbyname(str(urlsplit(package_mirror()).hostname))
    site.guard(allow=(f"{_outer_address()}/32",), deny=(f"{outside}/32",))

    assert site.reached((outside, 80), (site.server_address, 8000)) == []


@pytest.mark.component
def test_an_allowed_address_of_the_host_is_reached(site: Site, listen: Callable[[], int]):
    port = listen()

    site.guard(allow=(f"{_outer_address()}/32",))

    assert site.reaches(_outer_address(), port)


@pytest.mark.component
def test_applying_the_guard_again_changes_nothing(site: Site):
    site.guard()
    first = site.rules()

    site.guard()

    assert site.rules() == first
    assert first.count(f"-i {task_network(site.settings).bridge} -j") == 2


@pytest.fixture
def listen() -> Iterator[Callable[[], int]]:
    """A server of the host itself, in no container; gives its port."""
    servers: list[socket.socket] = []

    def start() -> int:
        server = socket.create_server(("", 0), backlog=16)
        servers.append(server)
        port: int = server.getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()


def _outer_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        return address
