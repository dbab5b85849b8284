from __future__ import annotations

import json

from services.gateway.health_report import describe_executors, describe_part, worst


def test_a_parts_entry_shows_states_and_numbers_but_neither_texts_nor_addresses():
    readiness = {
        "status": "degraded",
        "checks": {
            "postgres": {"status": "up", "latencyMs": 1.5},
            "redis": {"status": "down", "latencyMs": 2, "error": "ConnectionError: redis:6379 password=hunter2"},
        },
    }

    report = describe_part(readiness, 12.5)

    assert report == {
        "status": "degraded",
        "latencyMs": 12.5,
        "checks": {
            "postgres": {"status": "up", "latencyMs": 1.5},
            "redis": {"status": "down", "latencyMs": 2},
        },
    }
    assert "hunter2" not in json.dumps(report)


def test_a_part_that_says_nothing_useful_is_unavailable():
    for readiness in ({}, {"status": "splendid"}, {"checks": "none"}):
        assert describe_part(readiness, 0.1)["status"] == "unavailable"


def test_executors_are_ready_when_the_scheduler_says_that_they_are():
    up = {"checks": {"executors": {"status": "up", "latencyMs": 1, "alive": 3, "slots": 12}}}
    down = {"checks": {"executors": {"status": "down", "error": "none"}}}

    assert describe_executors(up) == {"status": "ready", "alive": 3, "slots": 12}
    assert describe_executors(down)["status"] == "unavailable"
    assert describe_executors({})["status"] == "unavailable"


def test_the_system_is_as_bad_as_its_worst_part():
    assert worst(["ready", "ready"]) == "ready"
    assert worst(["ready", "degraded"]) == "degraded"
    assert worst(["unavailable", "degraded", "ready"]) == "unavailable"
