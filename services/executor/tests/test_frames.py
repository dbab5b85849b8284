from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from services.executor.frames import FrameReader


def encode(frames: list[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack(">BxxxI", number, len(data)) + data for number, data in frames)


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=30))),
    cuts=st.lists(st.integers(1, 12), min_size=1),
)
def test_frames_come_out_whole_however_the_socket_cuts_them(frames: list[tuple[int, bytes]], cuts: list[int]):
    data, reader, got = encode(frames), FrameReader(), {"stdout": b"", "stderr": b""}

    turn = 0
    while data:
        size = cuts[turn % len(cuts)]
        for stream, payload in reader.feed(data[:size]):
            got[stream] += payload
        data, turn = data[size:], turn + 1

    assert got["stdout"] == b"".join(payload for number, payload in frames if number == 1)
    assert got["stderr"] == b"".join(payload for number, payload in frames if number == 2)
    assert reader.is_between


@given(frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=9)), min_size=1), data=st.data())
def test_output_that_ends_within_a_frame_is_told_apart(frames: list[tuple[int, bytes]], data: st.DataObject):
    encoded, reader = encode(frames), FrameReader()
    ends = {len(encode(frames[:count])) for count in range(len(frames) + 1)}
    cut = data.draw(st.integers(0, len(encoded)))

    list(reader.feed(encoded[:cut]))

    assert reader.is_between == (cut in ends)
