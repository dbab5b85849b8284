"""Signs a new user up through the gateway, submits a few tasks, and shows what their containers printed."""

from __future__ import annotations

import json
import secrets
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from deploy.environment import ENV_FILE, gateway_url, read_settings

IMAGE = "busybox:latest"
DELAY_SECONDS = 3
DEADLINE_SECONDS = 60
POLL_SECONDS = 0.1
TERMINAL = ("completed", "failed", "cancelled")


class DemoFailed(Exception):
    """Something that a user would not expect; the message says what."""


class Client:
    """Speaks JSON with the gateway, as one user once `token` is set."""

    def __init__(self, url: str) -> None:
        self.token = ""
        self._url = url

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return json.loads(self._send("POST", path, body))

    def get(self, path: str) -> Any:
        return json.loads(self._send("GET", path))

    def get_text(self, path: str) -> str:
        return self._send("GET", path).decode(errors="replace")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise DemoFailed(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise DemoFailed(f"{method} {path}: {error}") from error


@dataclass(frozen=True)
class Example:
    """A task to submit, and how it should end."""

    title: str
    request: dict[str, Any]
    status: str = "completed"
    exit_code: int = 0
    prints: str = field(default="")


def list_examples(now: datetime) -> list[Example]:
    poem = "Roses are red,\n  violets are $blue;\n\"quotes\" & 'ümläuts' arrive, too."
    # A whole second, so that the two times that it prints can be compared.
    due_at = (now + timedelta(seconds=DELAY_SECONDS + 0.5)).replace(microsecond=0)
    clock = ["-c", 'echo "it is $(date -u +%H:%M:%S), due at $DUE"']
    return [
        Example(
            "a command with arguments, no shell involved",
            {"command": "echo", "args": ["hello from a container;", "$(this) && that stay as they are"]},
            prints="hello from a container; $(this) && that stay as they are\n",
        ),
        Example(
            "environment values with spaces and newlines",
            {"command": "sh", "args": ["-c", 'printf "%s\\n" "$POEM"'], "environment": {"POEM": poem}},
            prints=f"{poem}\n",
        ),
        Example(
            "a command that fails",
            {"command": "sh", "args": ["-c", "echo working; sleep 0.1; echo 'out of luck' >&2; exit 3"]},
            status="failed",
            exit_code=3,
        ),
        Example(
            f"a task for later, due at {due_at:%H:%M:%S} UTC",
            {
                "command": "sh",
                "args": clock,
                "environment": {"DUE": f"{due_at:%H:%M:%S}"},
                "scheduledAt": due_at.isoformat().replace("+00:00", "Z"),
            },
        ),
    ]


def sign_up(client: Client) -> str:
    """Makes a user of this run's own and signs the client in as them; returns their email address."""
    email = f"demo-{secrets.token_hex(4)}@example.org"
    password = secrets.token_urlsafe(16)
    body = {"name": "Demo", "email": email, "password": password, "passwordConfirm": password}
    client.token = client.post("/api/users/signup", body)["token"]
    return email


def wait_for(client: Client, task_id: str) -> dict[str, Any]:
    """The task, once it is terminal."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        task: dict[str, Any] = client.get(f"/api/tasks/{task_id}")
        if task["status"] in TERMINAL:
            return task
        time.sleep(POLL_SECONDS)
    raise DemoFailed(f"task {task_id} is still {task['status']} after {DEADLINE_SECONDS} s")


def check(example: Example, task: dict[str, Any], output: str) -> None:
    if (task["status"], task["exitCode"]) != (example.status, example.exit_code):
        raise DemoFailed(f"expected {example.status} with exit code {example.exit_code}, got {task}")
    if example.prints and output != example.prints:
        raise DemoFailed(f"expected the output {example.prints!r}, got {output!r}")


def show(example: Example, task: dict[str, Any], output: str) -> None:
    outcome = f"{task['status']}, exit code {task['exitCode']}"
    if task["errorMsg"]:
        outcome += f": {task['errorMsg']}"
    print(f"\n  {example.title}\n    {outcome}")
    for line in output.splitlines():
        print(f"    | {line}")


def run(url: str) -> None:
    client = Client(url)
    print(f"\nSigning up at {url}/api/users/signup")
    print(f"  as {sign_up(client)}")
    examples = list_examples(datetime.now(UTC))
    print(f"\nSubmitting {len(examples)} tasks to {url}/api/tasks/")
    ids = [client.post("/api/tasks/", {"image": IMAGE, **example.request})["id"] for example in examples]
    print("\nWhat their containers printed:")
    for example, task_id in zip(examples, ids, strict=True):
        task = wait_for(client, task_id)
        output = client.get_text(f"/api/tasks/{task_id}/logs")
        show(example, task, output)
        check(example, task, output)
    print("\nThat's it. Try one yourself: the README shows how, `make up` tells the admin's login again.")


def main() -> int:
    try:
        run(gateway_url(read_settings(ENV_FILE.read_text())))
    except DemoFailed as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        print("`make logs` shows what the services say.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
