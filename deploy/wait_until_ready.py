"""Polls the gateway's GET /api/health until every part is ready, and says what it waits for.

    python3 -m deploy.wait_until_ready ENV_FILE

Exits 1 after DEADLINE_SECONDS, naming the parts that are not ready. Parts that work, but lack something that they
can do without, are waited for no longer than DEGRADED_SECONDS.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from deploy.environment import gateway_url, read_settings

DEADLINE_SECONDS = 120
DEGRADED_SECONDS = 20
POLL_SECONDS = 0.25


def fetch_health(url: str) -> dict[str, Any] | None:
    """The answer's body, also that of a 503; None while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            return json.load(error)
        except ValueError:
            return None
    except (OSError, ValueError):
        return None


def list_missing(health: dict[str, Any] | None, *, good: tuple[str, ...] = ("ready",)) -> list[str]:
    """The parts whose status isn't good, each with those of its dependencies that are down."""
    if health is None:
        return ["gateway"]
    parts = health.get("services", {}).items()
    return [_describe(name, part) for name, part in parts if part.get("status") not in good]


def _describe(name: str, part: dict[str, Any]) -> str:
    down = [check for check, state in part.get("checks", {}).items() if state.get("status") != "up"]
    return f"{name} ({', '.join(down)} down)" if down else name


def main(env_file: str) -> int:
    url = gateway_url(read_settings(Path(env_file).read_text())) + "/api/health"
    started = time.monotonic()
    shown: list[str] = []
    while missing := list_missing(health := fetch_health(url)):
        if missing != shown:
            print(f"waiting for {', '.join(missing)}…", file=sys.stderr, flush=True)
            shown = missing
        waited = time.monotonic() - started
        if waited > DEGRADED_SECONDS and not list_missing(health, good=("ready", "degraded")):
            print(f"every part works, but not with all that it should: {', '.join(missing)}", file=sys.stderr)
            return 0
        if waited > DEADLINE_SECONDS:
            print(f"not ready after {DEADLINE_SECONDS} s: {', '.join(missing)}", file=sys.stderr)
            print("`make logs` shows what they say.", file=sys.stderr)
            return 1
        time.sleep(POLL_SECONDS)
    print(f"every part is ready ({time.monotonic() - started:.0f} s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
