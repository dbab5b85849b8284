"""Streams of output as a client reads them, with the coming back that a browser does by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests

from tests.integration.client import Api, expect

# The system sends something every 5 s while nothing is printed.
SILENCE_SECONDS = 30.0
BROKEN = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)


@dataclass(frozen=True, slots=True)
class Sent:
    """One server-sent event."""

    name: str
    id: int | None
    data: Any


class Stream:
    """One answer, event by event; it may break off."""

    def __init__(self, api: Api, task_id: str, *, last_event_id: int | None = None, **query: Any) -> None:
        headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {api.token}"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        self.response = requests.get(
            f"{api.url}/api/tasks/{task_id}/logs",
            params=query,
            headers=headers,
            stream=True,
            timeout=SILENCE_SECONDS,
        )

    def __iter__(self) -> Iterator[Sent]:
        assert self.response.status_code == 200, self.response.text
        assert self.response.headers["Content-Type"] == "text/event-stream"
        rest = b""
        for piece in self.response.iter_content(None):
            *blocks, rest = (rest + piece).split(b"\n\n")
            yield from filter(None, map(_parse, blocks))

    def close(self) -> None:
        self.response.close()


def follow(api: Api, task_id: str, **query: Any) -> Iterator[Sent]:
    """All events until the end, whatever breaks off meanwhile: it comes back with the last event's id."""
    last_event_id: int | None = None
    while True:
        try:
            for sent in _open(api, task_id, last_event_id, query):
                yield sent
                if sent.name == "end":
                    return
                last_event_id = sent.id
        except BROKEN:
            # A part that is being restarted is away for a moment.
            time.sleep(0.2)


def _open(api: Api, task_id: str, last_event_id: int | None, query: dict[str, Any]) -> Iterator[Sent]:
    stream = Stream(api, task_id, last_event_id=last_event_id, **query)
    try:
        if stream.response.status_code in (502, 503, 504):
            raise requests.exceptions.ConnectionError(stream.response.text)
        yield from stream
    finally:
        stream.close()


def read_text(events: Iterator[Sent]) -> str:
    """What the events before the end say, put together."""
    return "".join(sent.data["text"] for sent in events if sent.name == "message")


def cancel(api: Api, task_id: str) -> None:
    expect(api.post(f"/api/tasks/{task_id}/cancel"), 202)


def _parse(block: bytes) -> Sent | None:
    fields = dict(line.split(": ", 1) for line in block.decode("ascii").splitlines())
    if "data" not in fields:
        return None
    sent_id = int(fields["id"]) if "id" in fields else None
    return Sent(fields.get("event", "message"), sent_id, json.loads(fields["data"]))
