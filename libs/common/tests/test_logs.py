"""Each line is one JSON object, whoever logs it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from libs.common.logs import configure_logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def start_logs(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], Lines]]:
    """Configures the logs, from within the test since pytest has handlers of its own for each phase."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def start() -> Lines:
        structlog.contextvars.clear_contextvars()
        configure_logs(service="example", level="info")
        return lambda: [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]

    yield start

    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_line_says_when_who_and_what(start_logs: Callable[[], Lines]):
    lines = start_logs()

    structlog.get_logger().info("run_dispatched", run_id="r1", attempt=2)

    (line,) = lines()
    assert str(line.pop("at")).endswith("Z")
    assert line == {"event": "run_dispatched", "level": "info", "service": "example", "run_id": "r1", "attempt": 2}


def test_what_is_bound_to_the_request_is_on_every_line(start_logs: Callable[[], Lines]):
    lines = start_logs()

    structlog.contextvars.bind_contextvars(request_id="abc")

    structlog.get_logger().info("one")
    logging.getLogger("some.library").warning("two %s", "three")

    assert [(line["event"], line["request_id"]) for line in lines()] == [("one", "abc"), ("two three", "abc")]


def test_a_traceback_stays_within_its_line(start_logs: Callable[[], Lines]):
    lines = start_logs()

    try:
        _ = 1 / 0
    except ZeroDivisionError:
        structlog.get_logger().exception("loop_failed")
        logging.getLogger("some.library").exception("it failed too")

    ours, theirs = lines()
    assert "ZeroDivisionError" in str(ours["exception"])
    assert "ZeroDivisionError" in str(theirs["exception"])


def test_line_breaks_in_values_make_no_new_lines(start_logs: Callable[[], Lines]):
    lines = start_logs()

    structlog.get_logger().info("name_changed", name='x\n{"event": "forged"}\u2028')

    (line,) = lines()
    assert line["name"] == 'x\n{"event": "forged"}\u2028'


def test_what_is_below_the_level_is_left_out(start_logs: Callable[[], Lines]):
    lines = start_logs()

    structlog.get_logger().debug("too_much")
    logging.getLogger("some.library").debug("too much")
    logging.getLogger("urllib3").info("chatter")

    assert lines() == []
