"""Asks a port of this container for /livez; exits 0 on a 200, else 1.

The engine runs it again and again, so it loads nothing that it doesn't need: `python3 -I -S healthcheck.py PORT`.
"""

import socket
import sys

TIMEOUT_SECONDS = 5
REQUEST = b"GET /livez HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def is_alive(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection:
            connection.sendall(REQUEST)
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if is_alive(int(sys.argv[1])) else 1)
