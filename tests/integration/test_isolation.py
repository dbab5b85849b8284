from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.client import Api, User, expect, shell
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

# Prints as JSON what each call is answered, from inside the control networks.
CALLS = """
import json, urllib.request, urllib.error
answers = []
for method, url, headers, body in json.loads({calls!r}):
    request = urllib.request.Request(url, data=body.encode() if body else None, headers=headers, method=method)
    try:
        answers.append(urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        answers.append(error.code)
print(json.dumps(answers))
"""


def call_from_inside(stack: Stack, calls: list[tuple[str, str, dict[str, str], str]]) -> Any:
    return stack.run_inside("gateway", CALLS.format(calls=json.dumps(calls)))


def test_services_refuse_calls_without_a_token_from_inside_the_network(stack: Stack, user: User):
    forged = {"X-User-Id": user.id, "X-User-Roles": "admin", "Content-Type": "application/json"}
    wrong = {**forged, "Authorization": "Bearer guess"}
    users_token = {**forged, "Authorization": f"Bearer {user.api.token}"}
    calls = [
        ("GET", "http://scheduler:8002/api/tasks/", forged, ""),
        ("GET", "http://scheduler:8002/api/tasks/", wrong, ""),
        ("GET", "http://users:8001/api/users/", forged, ""),
        ("GET", "http://users:8001/api/users/", wrong, ""),
        ("POST", "http://scheduler:8002/internal/executors/sync", forged, "{}"),
        ("POST", "http://scheduler:8002/internal/executors/sync", wrong, "{}"),
        ("POST", "http://scheduler:8002/internal/executors/sync", users_token, "{}"),
        ("POST", "http://users:8001/internal/sessions/check", forged, "{}"),
        ("POST", "http://users:8001/internal/tokens/exchange", wrong, "{}"),
        ("POST", "http://users:8001/internal/tokens/exchange", users_token, "{}"),
        ("GET", f"http://users:8001/internal/users/{user.id}", wrong, ""),
    ]

    assert call_from_inside(stack, calls) == [401] * len(calls)


def test_a_valid_token_is_valid_inside_too(stack: Stack, user: User):
    headers = {"Authorization": f"Bearer {user.api.token}"}

    assert call_from_inside(stack, [("GET", "http://scheduler:8002/api/tasks/", headers, "")]) == [200]


def test_only_the_gateway_is_published_on_the_host(stack: Stack):
    label = f"com.docker.compose.project={stack.project}"
    published = {
        container.labels["com.docker.compose.service"]: bindings
        for container in stack.engine.containers.list(filters={"label": label}, ignore_removed=True)
        if (bindings := [port for ports in container.ports.values() if ports for port in ports])
    }

    assert set(published) == {"gateway"}


def test_a_task_reaches_neither_the_control_plane_nor_the_host(stack: Stack, user: User):
    ports = {"postgres": 5432, "redis": 6379, "rabbitmq": 5672, "users": 8001, "scheduler": 8002, "gateway": 8000}
    targets = [
        f"{address}:{port}"
        for name, address in stack.control_addresses().items()
        for service, port in ports.items()
        if f"-{service}-" in name
    ]
    assert len(targets) >= len(ports)
    published = stack.settings["GATEWAY_PORT"]
    # $HOST is the bridge's own address, which is the host.
    targets += [f"$HOST:{published}", "$HOST:22", "$HOST:2375", "169.254.169.254:80"]
    # The last one is the task itself: it shows that the probe would see an open port.
    targets.append("127.0.0.1:7777")
    script = f"""
        HOST=$(ip route | awk '/default/ {{ print $3 }}')
        nc -ll -p 7777 -e true &
        sleep 0.2
        for target in {" ".join(targets)}; do
            ( if nc -w 2 ${{target%:*}} ${{target##*:}} </dev/null >/dev/null 2>&1
              then echo "reached $target"; else echo "no $target"; fi ) &
            probes="$probes $!"
        done
        wait $probes
    """

    task = user.api.wait_for(
        expect(user.api.post("/api/tasks/", shell(script, network="egress")), 201)["id"], "completed"
    )

    lines = task["result"].splitlines()
    assert len(lines) == len(targets)
    assert [line for line in lines if not line.startswith("no ")] == ["reached 127.0.0.1:7777"]


def test_the_names_of_the_control_plane_mean_nothing_to_a_task(user: User):
    task = user.api.run("nslookup", "postgres", network="egress", timeoutSeconds=30)

    assert task["status"] == "failed"


def test_tasks_do_not_reach_each_other(stack: Stack, user: User):
    script = "nc -ll -p 8080 -e echo hello & sleep 0.2; nc -w 2 127.0.0.1 8080 </dev/null; wait"
    listener = expect(user.api.post("/api/tasks/", shell(script, network="egress")), 201)
    user.api.wait_for(listener["id"], "running")
    wait_until(lambda: user.api.read_logs(listener["id"]) == b"hello\n", what="it listened")
    networks = stack.task_container(listener["id"]).attrs["NetworkSettings"]["Networks"]
    (address,) = [network["IPAddress"] for network in networks.values()]

    script = f"nc -w 2 {address} 8080 </dev/null || echo unreachable"
    caller = user.api.wait_for(
        expect(user.api.post("/api/tasks/", shell(script, network="egress")), 201)["id"], "completed"
    )

    assert caller["result"] == "unreachable\n"
    expect(user.api.delete(f"/api/tasks/{listener['id']}"), 204)


def test_a_task_without_a_network_has_none(user: User):
    task = user.api.run("ls", "/sys/class/net", network="none")

    assert task["result"] == "lo\n"


def test_a_task_container_is_hardened_and_has_no_way_to_the_engine(stack: Stack, user: User):
    task = user.api.create_task("sleep", "600", resources={"memoryMb": 32, "cpus": 0.5, "pids": 20})
    user.api.wait_for(task["id"], "running")

    attributes = stack.task_container(task["id"]).attrs

    host = attributes["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert (host["Memory"], host["MemorySwap"]) == (32 * 1024 * 1024, 32 * 1024 * 1024)
    # One more than asked for: the engine's init is a process too.
    assert (host["NanoCpus"], host["PidsLimit"]) == (500_000_000, 21)
    assert not host["Privileged"]
    assert not host["Binds"]
    assert attributes["Mounts"] == []
    expect(user.api.delete(f"/api/tasks/{task['id']}"), 204)


def test_health_names_every_part_and_no_address(stack: Stack, anyone: Api):
    response = anyone.get("/api/health")

    body = expect(response, 200)
    assert {"gateway", "users", "scheduler", "scheduler-loops", "executors"} <= set(body["services"])
    assert not [address for address in stack.control_addresses().values() if address in response.text]
