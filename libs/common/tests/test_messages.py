from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.messages import RunMessage, UnreadableMessage, decode_run_message

RUN, TASK = str(uuid.uuid4()), str(uuid.uuid4())


@given(st.uuids(), st.uuids())
def test_a_message_survives_the_broker(run_id: uuid.UUID, task_id: uuid.UUID):
    message = RunMessage(run_id=run_id, task_id=task_id)

    assert decode_run_message(message.encode()) == message


def test_a_message_says_which_run_and_nothing_else():
    body = json.loads(RunMessage(run_id=uuid.UUID(RUN), task_id=uuid.UUID(TASK)).encode())

    assert body == {"v": 1, "runId": RUN, "taskId": TASK}


@pytest.mark.parametrize(
    "fields",
    [
        {"v": 2, "runId": RUN, "taskId": TASK},
        {"runId": RUN, "taskId": TASK},
        {"v": 1, "runId": RUN},
        {"v": 1, "runId": "x", "taskId": TASK},
        {"v": 1, "runId": 5, "taskId": TASK},
        {"v": 1, "runId": None, "taskId": TASK},
        [],
        "text",
        None,
        5,
    ],
)
def test_another_form_is_unreadable(fields: Any):
    with pytest.raises(UnreadableMessage):
        decode_run_message(json.dumps(fields).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_unreadable(body: bytes):
    with pytest.raises(UnreadableMessage):
        decode_run_message(body)


@given(st.binary())
def test_any_other_bytes_are_unreadable(body: bytes):
    with pytest.raises(UnreadableMessage):
        decode_run_message(body)


def test_fields_of_a_later_version_are_ignored_within_version_one():
    body = json.dumps({"v": 1, "runId": RUN, "taskId": TASK, "hint": "x"}).encode()

    assert decode_run_message(body).run_id == uuid.UUID(RUN)
