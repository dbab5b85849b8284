"""Whether a part is there, asked over the network: to run a program in its container costs a tenth of a core.

This machine is on every bridge of the system, so it reaches each container at its own address.
"""

from __future__ import annotations

import socket

import requests
from docker.models.containers import Container

SECONDS = 2.0
HTTP_PORTS = {
    "gateway": 8000,
    "users": 8001,
    "scheduler": 8002,
    "executor": 8003,
    "executor-ahead": 8003,
    "scheduler-loops": 8004,
    "scheduler-logs": 8005,
}
TCP_PORTS = {"postgres": 5432, "rabbitmq": 5672, "redis": 6379}


def is_there(container: Container) -> bool:
    """A service answers /livez, a server takes connections. Parts that can't be asked count as there."""
    container.reload()
    networks = container.attrs["NetworkSettings"]["Networks"].values()
    addresses = [network["IPAddress"] for network in networks if network["IPAddress"]]
    service = container.labels["com.docker.compose.service"]
    if container.status != "running" or not addresses:
        return False
    if service in HTTP_PORTS:
        return _is_alive(f"http://{addresses[0]}:{HTTP_PORTS[service]}/livez")
    return service not in TCP_PORTS or _takes_connections(addresses[0], TCP_PORTS[service])


def _is_alive(url: str) -> bool:
    try:
        return requests.get(url, timeout=SECONDS).ok
    except requests.RequestException:
        return False


def _takes_connections(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), SECONDS).close()
    except OSError:
        return False
    return True
