"""Takes apart the engine's log stream: frames of eight bytes of header and their payload. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from services.executor.runtime import Stream

_HEADER = struct.Struct(">BxxxI")
_STREAMS: dict[int, Stream] = {0: "stdout", 1: "stdout", 2: "stderr"}


class FrameReader:
    """Feed it what the socket gave; it gives each payload's bytes as they come, not only whole frames."""

    def __init__(self) -> None:
        self._header = b""
        self._stream: Stream = "stdout"
        self._left = 0

    @property
    def is_between(self) -> bool:
        """All frames that have begun are whole: output may end here."""
        return not self._header and self._left == 0

    def feed(self, data: bytes) -> Iterator[tuple[Stream, bytes]]:
        view = memoryview(data)
        while view:
            if self._left == 0:
                view = self._read_header(view)
                continue
            payload = bytes(view[: self._left])
            view = view[len(payload) :]
            self._left -= len(payload)
            yield self._stream, payload

    def _read_header(self, view: memoryview) -> memoryview:
        missing = _HEADER.size - len(self._header)
        self._header += bytes(view[:missing])
        if len(self._header) == _HEADER.size:
            number, self._left = _HEADER.unpack(self._header)
            self._stream = _STREAMS.get(number, "stderr")
            self._header = b""
        return view[missing:]
