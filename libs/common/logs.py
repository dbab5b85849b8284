"""JSON logs on standard output, one object a line, also for what libraries log."""

from __future__ import annotations

import logging
import sys
import threading

import structlog
from structlog.typing import Processor

_LOCK = threading.Lock()


class _Lines:
    """Writes each line at once, to what is standard output then."""

    def __init__(self, *_names: object) -> None:
        """structlog passes the logger's name, which nobody reads."""

    def msg(self, line: str) -> None:
        with _LOCK:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    debug = info = warning = error = exception = critical = msg


def configure_logs(*, service: str, level: str) -> None:
    """Send structlog's and the standard library's records through one JSON renderer.

    Every line carries `at`, `level`, `service`, `event` and what is bound in structlog's context variables
    (`request_id`, `task_id`, `run_id`).
    """

    def add_service(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["service"] = service
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_service,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        # Not through the standard library, whose records cost more than all else about a line, and a run has six.
        processors=[*shared, structlog.processors.JSONRenderer()],
        logger_factory=_Lines,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for chatty in ("urllib3", "docker", "werkzeug"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It tells of one lost connection in eight errors with tracebacks; whoever connects tells of it once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
