"""Writes the stack's settings file from `.env.example`, and keeps it up to date.

    python3 -m deploy.environment FILE [NAME=VALUE…]

A new file gets the example's lines, random values where those are empty, and the given values; its mode is 600.
In an existing file, variables that the example has and it lacks are added, and the facts about this machine at
its end are renewed; nothing else changes.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

ENV_FILE = Path(__file__).parent / ".env"
EXAMPLE = Path(__file__).parent / ".env.example"
FACTS_HEADING = "# Facts about this machine, found out anew by each `make up`:"
SETTING = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$")
# The app image's group, to which `make keys` gives its files when root runs it.
APP_GROUP_ID = 10001


def read_settings(text: str) -> dict[str, str]:
    """Name → value of every line `NAME=VALUE`; comments and blank lines are passed over."""
    return {match[1]: match[2] for line in text.splitlines() if (match := SETTING.match(line))}


def gateway_url(settings: Mapping[str, str]) -> str:
    """Where the gateway answers, seen from this machine; the first of several."""
    bind = settings["GATEWAY_BIND"]
    host = "127.0.0.1" if bind == "0.0.0.0" else bind  # noqa: S104  Compared, not bound.
    return f"http://{host}:{settings['GATEWAY_PORT'].partition('-')[0]}"


def fill_example(example: str, given: Mapping[str, str]) -> str:
    """The example with given values, and random ones where it is empty; given names that it lacks are added."""
    lines = []
    left = dict(given)
    for line in example.splitlines():
        match = SETTING.match(line)
        if match:
            line = f"{match[1]}={left.pop(match[1], match[2]) or make_secret()}"  # noqa: PLW2901
        lines.append(line)
    lines += [f"{name}={value}" for name, value in left.items()]
    return "\n".join(lines) + "\n"


def add_missing(text: str, example: str) -> str:
    """`text` with the variables that only the example has."""
    present = read_settings(text)
    missing = {name: value for name, value in read_settings(example).items() if name not in present}
    added = "".join(f"{name}={value or make_secret()}\n" for name, value in missing.items())
    return text + added


def renew_facts(text: str, facts: Mapping[str, str]) -> str:
    """`text` with the facts below their heading, in the place of earlier ones; what stands above it wins."""
    own, _, rest = text.partition(FACTS_HEADING)
    # Variables that were added behind the facts belong before them.
    own += "".join(f"{name}={value}\n" for name, value in read_settings(rest).items() if name not in facts)
    overridden = read_settings(own)
    lines = [f"{name}={value}\n" for name, value in facts.items() if name not in overridden]
    return f"{own.rstrip()}\n\n{FACTS_HEADING}\n{''.join(lines)}"


def make_secret() -> str:
    """32 hexadecimal digits, which mean themselves in a URL, a shell and a Compose file."""
    return secrets.token_hex(16)


def find_facts() -> dict[str, str]:
    """What Compose must know of this machine: the engine's socket, the groups, and the cores a service may use."""
    host = os.environ.get("DOCKER_HOST", "")
    engine_socket = host.removeprefix("unix://") if host.startswith("unix://") else "/var/run/docker.sock"
    return {
        "DOCKER_SOCKET": engine_socket,
        "DOCKER_GID": str(_group_of(Path(engine_socket))),
        "KEYS_GID": str(os.getgid() or APP_GROUP_ID),
        "CPU_LIMIT": str(min(os.cpu_count() or 1, 4)),
    }


def _group_of(engine_socket: Path) -> int:
    # Not on Linux the engine runs in a virtual machine, where its socket belongs to group 0.
    return engine_socket.stat().st_gid if sys.platform == "linux" and engine_socket.exists() else 0


def write_environment(path: Path, given: Mapping[str, str]) -> bool:
    """Makes or renews the file; true when it is new."""
    example = EXAMPLE.read_text()
    is_new = not path.exists()
    text = fill_example(example, given) if is_new else add_missing(path.read_text(), example)
    text = renew_facts(text, find_facts())
    # The rename is what makes it whole: a kill half-way leaves no file with half of the passwords.
    draft = path.with_name(path.name + ".new")
    draft.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    draft.write_text(text)
    draft.replace(path)
    return is_new


def main(arguments: list[str]) -> None:
    path = Path(arguments[0])
    given = dict(argument.split("=", 1) for argument in arguments[1:])
    if write_environment(path, given):
        print(f"wrote {path} with random passwords", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
