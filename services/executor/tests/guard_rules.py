"""Looks at the guard's packet filter rules, and takes them away again, which no executor does."""

from __future__ import annotations

import os

import docker

from services.executor.network_guard import instance_tag

GUARD_IMAGE = os.environ.get("TASKRUNNER_IMAGE") or "taskrunner:dev"


def run_on_host(client: docker.DockerClient, script: str) -> str:
    """As root in the host's network; what it printed."""
    output: bytes = client.containers.run(
        GUARD_IMAGE,
        ["sh", "-c", f"{script}; true"],
        entrypoint=[],
        user="0",
        network_mode="host",
        cap_add=["NET_ADMIN", "NET_RAW"],
        remove=True,
    )
    return output.decode()


def remove_rules(client: docker.DockerClient, instance: str) -> None:
    bridge = instance_tag(instance)
    chains = {"INPUT": f"{bridge.upper()}-IN", "DOCKER-USER": f"{bridge.upper()}-FW"}
    steps = [
        step
        for parent, chain in chains.items()
        for step in (
            f"iptables -D {parent} -i {bridge} -j {chain}",
            f"iptables -F {chain}",
            f"iptables -X {chain}",
        )
    ]
    run_on_host(client, "; ".join(steps))
