"""What `make up` says that it is waiting for."""

from __future__ import annotations

from deploy.wait_until_ready import list_missing


def test_a_ready_system_misses_nothing() -> None:
    health = {"status": "ready", "services": {"gateway": {"status": "ready"}, "users": {"status": "ready"}}}

    assert list_missing(health) == []


def test_a_part_that_is_not_ready_is_named_with_what_it_lacks() -> None:
    checks = {"postgres": {"status": "down"}, "redis": {"status": "up"}}
    services = {"users": {"status": "unavailable", "checks": checks}, "executors": {"status": "unavailable"}}

    assert list_missing({"services": services}) == ["users (postgres down)", "executors"]


def test_a_part_that_works_without_something_is_missed_only_by_who_wants_it_whole() -> None:
    checks = {"storage": {"status": "down"}, "postgres": {"status": "up"}}
    health = {"services": {"scheduler": {"status": "degraded", "checks": checks}}}

    assert list_missing(health) == ["scheduler (storage down)"]
    assert list_missing(health, good=("ready", "degraded")) == []


def test_a_silent_gateway_is_what_is_missing() -> None:
    assert list_missing(None) == ["gateway"]
