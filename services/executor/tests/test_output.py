from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.output import CHUNK_BYTES, MISSING_MARK, RESULT_BYTES, TRUNCATION_MARK, Chunk, Output
from services.executor.runtime import Stream
from services.executor.spec import StoredOutput

Writes = list[tuple[Stream, bytes]]
WRITES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=40)))


def make_output(**changes: object) -> Output:
    return Output(**({"on_pending": lambda: None} | changes))  # type: ignore[arg-type]


def drain(output: Output, budget_bytes: int = 1 << 30) -> list[Chunk]:
    chunks = []
    while taken := output.take(budget_bytes):
        chunks += taken
        output.confirm()
    return chunks


def join(chunks: list[Chunk], stream: str) -> bytes:
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream)


@given(writes=WRITES)
def test_every_byte_comes_out_once_and_in_order(writes: Writes):
    output = make_output()

    for stream, data in writes:
        output.append(stream, data)
    chunks = drain(output)

    for stream in ("stdout", "stderr"):
        assert join(chunks, stream) == b"".join(data for name, data in writes if name == stream)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))


@given(writes=WRITES, cut=st.integers(0, 400))
def test_a_follow_that_starts_again_adds_only_what_is_new(writes: Writes, cut: int):
    output = make_output()

    for stream, data in writes[:cut]:
        output.append(stream, data)
    output.begin_follow()
    for stream, data in writes:
        output.append(stream, data)

    assert join(drain(output), "stdout") == b"".join(data for name, data in writes if name == "stdout")


@given(data=st.binary(min_size=1, max_size=100), stored=st.integers(0, 120))
def test_an_adopter_sends_what_is_not_stored_and_has_the_whole_result(data: bytes, stored: int):
    output = make_output(stored=StoredOutput(next_seq=5, stdout_bytes=min(stored, len(data)), stderr_bytes=0))

    output.append("stdout", data)

    assert join(drain(output), "stdout") == data[stored:]
    assert output.result == data


def test_what_is_not_confirmed_is_given_again_unchanged():
    output = make_output()
    output.append("stdout", b"one")
    first = output.take(1000)
    output.append("stdout", b"two")

    again = output.take(1000)

    assert again[0] == first[0]
    assert [chunk.data for chunk in again] == [b"one", b"two"]


def test_a_chunk_is_64_kib_at_most():
    output = make_output()

    output.append("stdout", b"x" * (3 * CHUNK_BYTES + 1))

    assert [len(chunk.data) for chunk in drain(output)] == [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 1]


def test_no_more_is_given_than_the_budget():
    output = make_output()
    output.append("stdout", b"x" * CHUNK_BYTES)
    output.append("stdout", b"y" * CHUNK_BYTES)

    assert len(output.take(CHUNK_BYTES)) == 1
    assert not output.drained
    output.confirm()
    assert len(output.take(CHUNK_BYTES)) == 1
    assert output.drained


def test_past_the_cap_a_mark_is_stored_and_the_result_goes_on():
    output = make_output(cap_bytes=10)

    output.append("stdout", b"0123456789")
    output.append("stdout", b"more")
    output.append("stderr", b"and more")
    chunks = drain(output)

    assert join(chunks, "stdout") == b"0123456789" + TRUNCATION_MARK
    assert join(chunks, "stderr") == TRUNCATION_MARK, "who reads only this one is told as well"
    assert output.result == b"0123456789more"
    assert output.stderr_tail == "and more"


def test_who_changes_between_the_streams_all_the_time_is_at_the_cap_sooner():
    output = make_output(cap_bytes=100_000)

    for _ in range(100_000):
        output.append("stdout", b"a")
        output.append("stderr", b"b")
    chunks = drain(output)

    assert len(chunks) < 1000
    assert sum(chunk.data.endswith(TRUNCATION_MARK) for chunk in chunks) == 2, "one a stream"


def test_output_of_exactly_the_cap_has_no_mark():
    output = make_output(cap_bytes=4)

    output.append("stdout", b"1234")

    assert join(drain(output), "stdout") == b"1234"


def test_an_adopter_past_the_cap_adds_no_second_mark():
    output = make_output(cap_bytes=4, stored=StoredOutput(next_seq=2, stdout_bytes=60, stderr_bytes=0))

    output.append("stdout", b"x" * 100)

    assert drain(output) == []


@pytest.mark.parametrize("seen", [b"", b"12", b"123456"])
def test_output_that_the_engine_did_not_give_is_marked_at_its_end(seen: bytes):
    output = make_output(stored=StoredOutput(next_seq=1, stdout_bytes=4, stderr_bytes=0))
    output.append("stdout", seen)

    output.begin_follow()
    output.mark_missing()

    assert join(drain(output), "stdout") == seen[4:] + MISSING_MARK
    assert output.result == seen + MISSING_MARK


def test_the_result_is_the_last_64_kib():
    output = make_output()

    for number in range(40):
        output.append("stdout", bytes([number]) * 10_000)

    assert output.result == b"".join(bytes([number]) * 10_000 for number in range(40))[-RESULT_BYTES:]


def test_pending_output_is_announced_once_until_it_is_taken():
    announced = []
    output = make_output(on_pending=lambda: announced.append(1))

    output.append("stdout", b"a")
    output.append("stdout", b"b")
    assert len(announced) == 1
    output.take(1000)
    output.append("stdout", b"c")

    assert len(announced) == 2
