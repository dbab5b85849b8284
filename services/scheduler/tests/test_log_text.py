from __future__ import annotations

import base64
import codecs
import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.log_events import EventEncoder, Position, begin_of_attempt, parse_event_id
from services.scheduler.log_text import LineStamps, find_last_lines, split_incomplete
from services.scheduler.states import LogStream

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
STAMP = b"2026-01-31T12:00:00.000000Z "
# Pieces of characters as well as whole ones.
PRINTED = st.one_of(st.binary(max_size=8), st.text(alphabet="aé☃𝄞\n\x1b", max_size=5).map(str.encode))
WRITES = st.lists(st.tuples(st.sampled_from(list(LogStream)), PRINTED.filter(bool)), max_size=12)


def read_data(body: bytes) -> dict[str, Any]:
    (line,) = [line for line in body.splitlines() if line.startswith(b"data: ")]
    fields: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return fields


def read_bytes(body: bytes) -> bytes:
    data = read_data(body)
    return base64.b64decode(data["base64"]) if "base64" in data else data["text"].encode()


@given(st.binary(max_size=12) | st.text(max_size=4).map(str.encode))
def test_what_is_held_back_is_what_a_decoder_would_wait_for(data):
    shown, pending = split_incomplete(data)

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert shown + pending == data
    assert decoder.decode(data) == shown.decode(errors="replace")
    assert decoder.getstate()[0] == pending


@given(WRITES)
def test_events_hold_every_byte_of_each_stream_in_order(writes):
    encoder = EventEncoder(1)

    events = [encoder.encode(seq, stream, NOON, data) for seq, (stream, data) in enumerate(writes)]
    events += encoder.flush()

    sent = [event for event in events if event is not None]
    for stream in LogStream:
        expected = b"".join(data for name, data in writes if name == stream)
        assert b"".join(read_bytes(event.body) for event in sent if event.stream == stream) == expected
    assert [event.position for event in sent] == sorted({event.position for event in sent})


@given(WRITES, st.integers(0, 12))
def test_who_goes_on_in_the_middle_gets_the_same_events(writes, cut):
    whole = EventEncoder(1)
    all_events = [whole.encode(seq, stream, NOON, data) for seq, (stream, data) in enumerate(writes)]
    ends = {stream: b"".join(data for name, data in writes[:cut] if name == stream)[-3:] for stream in LogStream}

    later = EventEncoder(1, ends)
    events = [later.encode(seq, stream, NOON, data) for seq, (stream, data) in enumerate(writes[cut:], cut)]

    assert events == all_events[cut:]


@given(st.text(alphabet="aé☃𝄞\x1b\x9b\r\n", max_size=20), st.integers(0, 60))
def test_a_character_that_is_cut_in_two_is_sent_whole(text, cut):
    data = text.encode()
    encoder = EventEncoder(1)

    parts = [part for part in (data[:cut], data[cut:]) if part]
    events = [encoder.encode(seq, LogStream.STDOUT, NOON, part) for seq, part in enumerate(parts)]

    assert encoder.flush() == []
    fields = [read_data(event.body) for event in events if event is not None]
    assert "".join(field["text"] for field in fields) == text
    assert not any("base64" in field for field in fields)


@given(st.binary(min_size=1, max_size=30))
def test_an_event_is_three_lines_of_printable_characters(data):
    encoder = EventEncoder(2)

    events = [encoder.encode(7, LogStream.STDERR, NOON, data), *encoder.flush()]

    for event in filter(None, events):
        lines = event.body.decode("ascii").split("\n")
        assert [line.partition(":")[0] for line in lines] == ["id", "data", "", ""]
        assert all(character.isprintable() or character == "\x7f" for line in lines for character in line)


@given(st.integers(1, 2**22), st.integers(-1, 2**40 - 1))
def test_an_events_id_grows_over_all_attempts_and_leads_back(number, seq):
    position = Position(number, seq)

    assert parse_event_id(Position(number, max(seq, 0)).event_id) == Position(number, max(seq, 0))
    assert begin_of_attempt(number) <= position <= position.end_of_attempt() < begin_of_attempt(number + 1)
    assert Position(1, max(seq, 0)).event_id == max(seq, 0)


@given(st.lists(st.binary(max_size=6)), st.integers(1, 6))
def test_the_last_lines_are_the_last_ones(chunks, count):
    data = b"".join(chunks)

    found = find_last_lines(reversed(list(enumerate(chunks))), count)

    kept = data if found is None else chunks[found[0]][found[1] :] + b"".join(chunks[found[0] + 1 :])
    lines = data.removesuffix(b"\n").split(b"\n")
    assert kept == b"\n".join(lines[-count:]) + (b"\n" if data.endswith(b"\n") else b"")


@given(st.lists(st.binary(max_size=6)))
def test_without_their_stamps_lines_are_what_they_were(chunks):
    stamps = LineStamps()

    stamped = b"".join(stamps.stamp(LogStream.STDOUT, NOON, chunk) for chunk in chunks)

    data = b"".join(chunks)
    assert stamped.replace(STAMP, b"") == data
    assert stamped.count(STAMP) == len([line for line in data.split(b"\n") if line]) + data.count(b"\n") - sum(
        1 for line in data.split(b"\n")[:-1] if line
    )


def test_each_stream_has_lines_of_its_own():
    stamps = LineStamps()

    parts = [
        stamps.stamp(LogStream.STDOUT, NOON, b"half"),
        stamps.stamp(LogStream.STDERR, NOON, b"oops\n"),
        stamps.stamp(LogStream.STDOUT, NOON, b" a line\nnext\n"),
    ]

    assert parts == [STAMP + b"half", STAMP + b"oops\n", b" a line\n" + STAMP + b"next\n"]
