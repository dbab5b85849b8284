"""The message that dispatch puts on the broker: which run, and nothing else about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

VERSION = 1


class UnreadableMessage(Exception):
    """The body is not a run message of a version that this code knows."""


@dataclass(frozen=True, slots=True)
class RunMessage:
    """`{"v": 1, "runId": uuid, "taskId": uuid}`: no command, no environment."""

    run_id: UUID
    task_id: UUID

    def encode(self) -> bytes:
        return json.dumps({"v": VERSION, "runId": str(self.run_id), "taskId": str(self.task_id)}).encode()


def decode_run_message(body: bytes) -> RunMessage:
    """Raises UnreadableMessage; the consumer then rejects it into the dead letters."""
    try:
        fields = json.loads(body)
        if fields["v"] != VERSION:
            raise UnreadableMessage(f"version {fields['v']!r}")
        return RunMessage(run_id=UUID(fields["runId"]), task_id=UUID(fields["taskId"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableMessage(f"{type(error).__name__}: {error}") from error
