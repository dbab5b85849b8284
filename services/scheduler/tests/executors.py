"""An executor as the scheduler sees it: it syncs, and its tests look at the answers."""

from __future__ import annotations

import base64
import itertools
import uuid
from collections.abc import Sequence
from typing import Any

from flask.testing import FlaskClient

from libs.common.clock import format_time, utc_now

SERVICE_TOKEN = "service-token"


class FakeExecutor:
    """Keeps what it holds like a real one, and sends it with every sync."""

    def __init__(
        self,
        client: FlaskClient,
        *,
        name: str = "e1",
        engine: str = "engine-1",
        slots: int = 4,
        pools: Sequence[str] = ("default",),
    ) -> None:
        self.client = client
        self.name = name
        self.engine = engine
        self.slots = slots
        self.pools = pools
        self.boot = str(uuid.uuid4())
        self.held: dict[str, int] = {}
        self._seq = itertools.count()

    def reboot(self) -> None:
        """It has died and come back, and knows of nothing."""
        self.boot = str(uuid.uuid4())
        self.held = {}

    def post(self, **lists: Any) -> Any:
        body = {
            "executor": {
                "id": self.name,
                "bootId": self.boot,
                "engineId": self.engine,
                "host": "host",
                "slots": self.slots,
                "pools": list(self.pools),
                "running": len(self.held),
            },
            "held": [{"runId": run_id, "epoch": epoch} for run_id, epoch in self.held.items()],
            **lists,
        }
        headers = {"Authorization": f"Bearer {SERVICE_TOKEN}"}
        return self.client.post("/internal/executors/sync", json=body, headers=headers)

    def sync(self, **lists: Any) -> dict[str, Any]:
        answer = self.post(**lists)
        assert answer.status_code == 200, answer.json
        return answer.json

    def claim(self, *run_ids: str) -> list[dict[str, Any]]:
        claims = self.sync(claims=[{"runId": run_id} for run_id in run_ids])["claims"]
        self.held |= {claim["runId"]: claim["epoch"] for claim in claims if claim["granted"]}
        return claims

    def report(self, run_id: str, event: str, *, epoch: int | None = None, **fields: Any) -> dict[str, Any]:
        """Send one report; the sync's answer."""
        sent = {"runId": run_id, "epoch": self.held[run_id] if epoch is None else epoch, "event": event, **fields}
        answer = self.sync(reports=[sent])
        if event == "finished":
            self.held.pop(run_id, None)
        return answer

    def start(self, run_id: str) -> dict[str, Any]:
        return self.report(
            run_id, "started", startedAt=format_time(utc_now()), containerId="c1", imageDigest="sha256:1"
        )

    def finish(
        self, run_id: str, outcome: str = "completed", *, result: bytes = b"", **fields: Any
    ) -> dict[str, Any]:
        return self.report(
            run_id,
            "finished",
            outcome=outcome,
            result=base64.b64encode(result).decode(),
            **{"exitCode": 0, "finishedAt": format_time(utc_now()), **fields},
        )

    def print(self, run_id: str, data: bytes, *, stream: str = "stdout", seq: int | None = None) -> None:
        self.sync(
            logs=[
                {
                    "runId": run_id,
                    "epoch": self.held[run_id],
                    "seq": next(self._seq) if seq is None else seq,
                    "stream": stream,
                    "at": format_time(utc_now()),
                    "data": base64.b64encode(data).decode(),
                }
            ]
        )
