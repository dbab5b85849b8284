"""A TCP proxy between two parts of the system that does what networks do: delay, go silent, break.

All proxies of a process are served by one thread with one event loop, since a test has dozens of them. Silence is
as of a cut cable behind a switch: nothing passes, nothing is closed, a new connection is taken and stays silent;
what was sent meanwhile passes when it is over, as retransmitted packets do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

READ_BYTES = 64 * 1024
CALL_SECONDS = 10.0
# Linger for no time: the close is a reset, and drops what wasn't sent.
_RESET = struct.pack("ii", 1, 0)

Value = TypeVar("Value")


class ProxyLoop:
    """The thread that serves proxies. Close it after them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    def close(self) -> None:
        self.call(_end_all_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()


@dataclass(eq=False, slots=True)
class _Connection:
    """One client's connection and ours to the server, None before it is there and after it was dropped."""

    client: asyncio.StreamWriter
    bytes_left: int | None
    server: asyncio.StreamWriter | None = None
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class TcpProxy:
    """Listens on a free loopback port and passes all on to `host:port`, until it is told otherwise.

    What it is told holds from then on for connections that are there and for new ones, unless said otherwise.
    """

    def __init__(self, loop: ProxyLoop, *, host: str, port: int) -> None:
        self._loop = loop
        self._target = (host, port)
        self._connections: set[_Connection] = set()
        self._delay_seconds = 0.0
        self._cut_after: int | None = None
        self._passing: asyncio.Event
        self._server: asyncio.Server
        self.port: int = loop.call(self._listen())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def pass_all(self) -> None:
        """As at the beginning; what was held back passes now."""
        self._loop.call(self._set(delay_seconds=0.0, cut_after=None, passing=True))

    def delay(self, seconds: float) -> None:
        """Each piece of data arrives so much later, either way."""
        self._loop.call(self._set(delay_seconds=seconds, cut_after=None, passing=True))

    def black_hole(self) -> None:
        """Nothing passes, and nobody is told."""
        self._loop.call(self._set(delay_seconds=0.0, cut_after=None, passing=False))

    def cut_after(self, count: int) -> None:
        """A connection that is opened from now on ends after so many bytes from the server."""
        self._loop.call(self._set(delay_seconds=0.0, cut_after=count, passing=True))

    def reset(self) -> None:
        """Both ends of each connection that is there get a reset."""
        self._loop.call(self._each(_reset_both))

    def half_open(self) -> None:
        """The server sees each connection that is there end, its client sees nothing, ever."""
        self._loop.call(self._each(_drop_server))

    def close(self) -> None:
        self._loop.call(self._close())

    async def _listen(self) -> int:
        self._passing = asyncio.Event()
        self._passing.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _set(self, *, delay_seconds: float, cut_after: int | None, passing: bool) -> None:
        self._delay_seconds = delay_seconds
        self._cut_after = cut_after
        if passing:
            self._passing.set()
        else:
            self._passing.clear()

    async def _each(self, work: Callable[[_Connection], None]) -> None:
        for connection in list(self._connections):
            work(connection)

    async def _close(self) -> None:
        self._server.close()
        self._passing.set()
        for connection in list(self._connections):
            _reset_both(connection)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer, self._cut_after)
        self._connections.add(connection)
        try:
            await self._passing.wait()
            server_reader, connection.server = await asyncio.open_connection(*self._target)
            connection.pumps = [
                asyncio.create_task(self._pump(reader, connection.server)),
                asyncio.create_task(self._pump(server_reader, writer, limited=connection)),
            ]
            await asyncio.gather(*connection.pumps)
        except OSError:
            _reset_both(connection)
        except asyncio.CancelledError:
            # Somebody broke it on purpose. A client that doesn't know speaks to nobody until it leaves.
            if connection.server is None:
                await _swallow(reader)
        finally:
            self._connections.discard(connection)
            for each in (connection.client, connection.server):
                if each is not None:
                    each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: _Connection | None = None
    ) -> None:
        """One direction, until its sender ends it, or OSError when either side broke."""
        try:
            while data := await reader.read(READ_BYTES):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._passing.wait()
                if limited is not None:
                    data = _take(limited, data)
                writer.write(data)
                await writer.drain()
                if limited is not None and limited.bytes_left == 0:
                    _end_client(limited)
                    return
        except OSError:
            # The other side hears of a break no sooner than of data.
            await self._passing.wait()
            raise
        await self._passing.wait()
        if not writer.is_closing():
            writer.write_eof()


def _take(connection: _Connection, data: bytes) -> bytes:
    if connection.bytes_left is None:
        return data
    taken = data[: connection.bytes_left]
    connection.bytes_left -= len(taken)
    return taken


def _end_client(connection: _Connection) -> None:
    """It gets what it was sent, and then the end; a reset would take that from it."""
    connection.client.close()
    if connection.server is not None:
        _reset(connection.server)


async def _swallow(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(READ_BYTES):
            pass


def _reset_both(connection: _Connection) -> None:
    for each in (connection.client, connection.server):
        if each is not None:
            _reset(each)
    for pump in connection.pumps:
        pump.cancel()


def _drop_server(connection: _Connection) -> None:
    server, connection.server = connection.server, None
    if server is not None:
        _reset(server)
    for pump in connection.pumps:
        pump.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.is_closing():
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _end_all_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
