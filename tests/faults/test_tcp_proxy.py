"""Against an echo server: a proxy that doesn't do what it says would make other tests pass."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.faults.tcp_proxy import ProxyLoop, TcpProxy
from tests.polling import wait_until

pytestmark = pytest.mark.component

DELAY_SECONDS = 0.2
# Long enough for anything that passes on the loopback to have passed.
SILENT_SECONDS = 0.3


class Echo(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.broken = 0
        self.ended = 0
        super().__init__(("127.0.0.1", 0), EchoHandler)


class EchoHandler(socketserver.BaseRequestHandler):
    server: Echo

    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except OSError:
            self.server.broken += 1
        else:
            self.server.ended += 1


@pytest.fixture
def server() -> Iterator[Echo]:
    with Echo() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def loop() -> Iterator[ProxyLoop]:
    with closing(ProxyLoop()) as loop:
        yield loop


@pytest.fixture
def proxy(loop: ProxyLoop, server: Echo) -> Iterator[TcpProxy]:
    with closing(TcpProxy(loop, host="127.0.0.1", port=server.server_address[1])) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with closing(connect(proxy)) as client:
        assert ask(client, b"hello") == b"hello"
        yield client


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5.0)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return receive(client, len(data))


def receive(client: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer when the connection ends first."""
    received = b""
    while len(received) < count and (data := client.recv(65536)):
        received += data
    return received


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SILENT_SECONDS)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5.0)
    return False


def test_all_passes_both_ways_and_the_end_too(proxy: TcpProxy, server: Echo, client: socket.socket):
    data = bytes(range(256)) * 4096

    sending = threading.Thread(target=client.sendall, args=(data,))
    sending.start()
    received = receive(client, len(data))
    sending.join()
    client.shutdown(socket.SHUT_WR)

    assert received == data
    assert client.recv(1) == b""
    wait_until(lambda: (server.ended, proxy.connection_count) == (1, 0), what="the server saw the end")


def test_a_delay_holds_each_way_up(proxy: TcpProxy, client: socket.socket):
    proxy.delay(DELAY_SECONDS)

    began = time.monotonic()
    assert ask(client, b"later") == b"later"

    assert time.monotonic() - began >= 2 * DELAY_SECONDS


def test_a_black_hole_keeps_everything_open_and_silent_and_gives_it_back(
    proxy: TcpProxy, server: Echo, client: socket.socket
):
    proxy.black_hole()
    client.sendall(b"held back")

    with closing(connect(proxy)) as another:
        another.sendall(b"new")
        assert is_silent(client)
        assert is_silent(another)
        proxy.pass_all()

        assert receive(client, 9) == b"held back"
        assert receive(another, 3) == b"new"
    assert server.broken == 0


def test_a_client_that_leaves_a_black_hole_is_missed_by_the_server_only_afterwards(
    proxy: TcpProxy, server: Echo, client: socket.socket
):
    proxy.black_hole()
    client.close()
    with closing(connect(proxy)) as another:
        assert is_silent(another)
        assert (server.ended, server.broken) == (0, 0)

        proxy.pass_all()

        wait_until(lambda: server.ended == 1, what="the server saw the end")


def test_a_reset_breaks_both_ends_and_lets_new_connections_pass(
    proxy: TcpProxy, server: Echo, client: socket.socket
):
    proxy.reset()

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: server.broken == 1, what="the server was reset")
    with closing(connect(proxy)) as another:
        assert ask(another, b"again") == b"again"


def test_a_half_open_connection_has_ended_for_the_server_alone(
    proxy: TcpProxy, server: Echo, client: socket.socket
):
    proxy.half_open()

    wait_until(lambda: server.broken == 1, what="the server was reset")
    client.sendall(b"anyone?")
    assert is_silent(client)
    with closing(connect(proxy)) as another:
        assert ask(another, b"again") == b"again"
    client.close()
    wait_until(lambda: proxy.connection_count == 0, what="the proxy let go of it")


def test_a_connection_ends_after_so_many_bytes_and_the_next_one_too(proxy: TcpProxy, server: Echo):
    proxy.cut_after(4)

    for _ in range(2):
        with closing(connect(proxy)) as client:
            assert ask(client, b"123456") == b"1234"

    wait_until(lambda: server.broken + server.ended == 2, what="the server lost both")
    proxy.pass_all()
    with closing(connect(proxy)) as client:
        assert ask(client, b"123456") == b"123456"


def test_a_server_that_is_not_there_is_a_reset_for_the_client(loop: ProxyLoop):
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = TcpProxy(loop, host="127.0.0.1", port=unused.getsockname()[1])
        # It may come so soon that the client is still connecting.
        with closing(proxy), pytest.raises(ConnectionResetError), closing(connect(proxy)) as client:
            client.recv(1)
