"""What goes wrong, when: drawn from a seed, so that the same seed gives the same plan. Pure.

An engine dies in two ways: with all that runs on it (a power cut), and in order, ending its containers first. Both
take what runs with them.

The storm has two acts. In the first, everything is hit, also what keeps the truth (PostgreSQL, the scheduler's
HTTP side). In the second these two stand, because a lease is only taken over while both have been up for 45 s;
executors that are frozen for longer than their leases last then lose their runs to others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "pause", "cut", "purge", "delete", "duplicate"]

REPLICAS: Mapping[str, int] = {
    "gateway": 1,
    "users": 1,
    "scheduler": 1,
    "scheduler-logs": 1,
    "scheduler-loops": 2,
    "executor": 3,
    "postgres": 1,
    "rabbitmq": 1,
    "redis": 1,
    "engine": 1,
}
# Parts that stand under several names in the Compose files: one of the executors has its clock an hour ahead.
COMPOSED: Mapping[str, Sequence[str]] = {"executor": ("executor", "executor-ahead")}
ROLES = ("gateway", "users", "scheduler", "scheduler-logs", "scheduler-loops", "executor")
SERVERS = ("postgres", "rabbitmq", "redis")
ENGINE = "engine"
WIPES = ("purge", "delete")
# Not the gateway's: its published port hangs on its network.
CUTS = (
    ("executor", "services"),
    ("executor", "broker"),
    ("scheduler", "database"),
    ("scheduler-loops", "broker"),
    ("scheduler-loops", "database"),
    ("users", "database"),
)
PAUSES = ("executor", "executor", "scheduler", "scheduler-loops", "rabbitmq")
# Longer than a lease lasts, and begun so late that the 45 s are over before it ends.
LONG_PAUSE_SECONDS = 42.0
TAKEOVER_SECONDS = 12.0
FIRST_ACT = 0.5
FIRST_ACT_ONLY = ("scheduler", "postgres")
# A daemon that stops in order gives containers up to 15 s; one that starts takes a few.
ENGINE_STOP_SECONDS = 15.0
ENGINE_START_SECONDS = 5.0
# Whoever is away for so long leaves work to others of its kind; one of them has to be there.
LONG_ABSENCE_SECONDS = 5.0
# A container that was started again is left alone for a moment: killing it while it starts proves little.
SETTLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """From `at` seconds after the storm's beginning; the part is away for `seconds`.

    `kill` is SIGKILL; `stop` lets the part end in order first, however long that takes.
    `purge` and `delete` do that to the broker's queue of runs; `duplicate` publishes `count` messages again.
    """

    at: float
    kind: Kind
    service: str
    replica: int = 0
    seconds: float = 0.0
    network: str = ""
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How much goes wrong. `kills` are those of our own services; servers are restarted by SIGKILL, too."""

    seconds: float = 170.0
    kills: int = 60
    kills_each_role: int = 8
    restarts_each_server: int = 3
    engine_restarts: int = 2
    cuts: int = 5
    pauses: int = 5
    wipes: int = 2
    duplicates: int = 15


def plan_faults(rng: random.Random, numbers: Numbers) -> Sequence[Fault]:
    """In order of time. No part is hit while it is away already."""
    drafts = _draft(rng, numbers)
    spacing = numbers.seconds / len(drafts)
    free_at = {(service, replica): 0.0 for service, replicas in REPLICAS.items() for replica in range(replicas)}
    long_away_until = dict(free_at)
    planned: list[Fault] = []
    now = 0.0
    while drafts:
        now += spacing * rng.uniform(0.5, 1.5)
        index, replica = _pick(rng, drafts, free_at, long_away_until, now)
        if index is None:
            continue
        draft = drafts.pop(index)
        fault = Fault(
            at=now,
            kind=draft.kind,
            service=draft.service,
            replica=replica,
            seconds=draft.seconds,
            network=draft.network,
            count=draft.count,
        )
        planned.append(fault)
        if fault.seconds >= LONG_ABSENCE_SECONDS:
            long_away_until[fault.service, replica] = now + fault.seconds
        if fault.seconds:
            free_at[fault.service, replica] = now + fault.seconds + _decide_settle_seconds(fault)
    return planned


def end_of(plan: Sequence[Fault]) -> float:
    """Seconds after the beginning at which the last part is back."""
    return max(fault.at + fault.seconds for fault in plan)


def list_wipe_times(plan: Sequence[Fault]) -> Sequence[float]:
    return [fault.at for fault in plan if fault.kind in WIPES]


def _pick(
    rng: random.Random,
    drafts: Sequence[Fault],
    free_at: Mapping[tuple[str, int], float],
    long_away_until: Mapping[tuple[str, int], float],
    now: float,
) -> tuple[int | None, int]:
    """The first draft of which a replica is there to be hit, and that replica."""
    truth_shakes = any(draft.service in FIRST_ACT_ONLY for draft in drafts)
    truth_stands_at = max(free_at[service, 0] for service in FIRST_ACT_ONLY) + TAKEOVER_SECONDS
    for index, draft in enumerate(drafts):
        if _is_long_pause(draft) and (truth_shakes or now < truth_stands_at):
            continue
        replicas = range(REPLICAS[draft.service])
        free = [each for each in replicas if draft.seconds == 0.0 or free_at[draft.service, each] <= now]
        away = sum(long_away_until[draft.service, each] > now for each in replicas)
        if draft.seconds >= LONG_ABSENCE_SECONDS and away and away + 1 >= len(replicas):
            continue
        if free:
            return index, rng.choice(free)
    return None, 0


def _draft(rng: random.Random, numbers: Numbers) -> list[Fault]:
    """Everything that is to happen, in the order in which it will be tried: the first act's, then the second's."""
    faults = [*_draft_kills(rng, numbers), *_draft_absences(rng, numbers), *_draft_broker_faults(rng, numbers)]
    rng.shuffle(faults)
    first = [fault for fault in faults if fault.service in FIRST_ACT_ONLY]
    second = [fault for fault in faults if _is_long_pause(fault)]
    others = [fault for fault in faults if fault not in first and fault not in second]
    split = max(0, round(len(faults) * FIRST_ACT) - len(first))
    first += others[:split]
    rng.shuffle(first)
    # Long pauses begin the second act, so that their leases run out within it.
    return [*first, *second, *others[split:]]


def _decide_settle_seconds(fault: Fault) -> float:
    if fault.service != ENGINE:
        return SETTLE_SECONDS
    return ENGINE_START_SECONDS + (ENGINE_STOP_SECONDS if fault.kind == "stop" else 0.0)


def _is_long_pause(fault: Fault) -> bool:
    return fault.kind == "pause" and fault.seconds >= LONG_PAUSE_SECONDS


def _draft_kills(rng: random.Random, numbers: Numbers) -> list[Fault]:
    victims = [role for role in ROLES for _ in range(numbers.kills_each_role)]
    # Executors and loops are where a death leaves most behind.
    while len(victims) < numbers.kills:
        victims.append(rng.choice(("executor", "executor", "scheduler-loops")))
    victims += [server for server in SERVERS for _ in range(numbers.restarts_each_server)]
    kills = [Fault(0.0, "kill", victim, seconds=rng.uniform(0.1, 2.0)) for victim in victims]
    ways: list[Kind] = ["kill" if number % 2 == 0 else "stop" for number in range(numbers.engine_restarts)]
    return kills + [Fault(0.0, way, ENGINE, seconds=rng.uniform(0.1, 2.0)) for way in ways]


def _draft_absences(rng: random.Random, numbers: Numbers) -> list[Fault]:
    cuts = [
        Fault(0.0, "cut", service, seconds=rng.uniform(5.0, 30.0), network=network)
        for service, network in _repeat(rng, CUTS, numbers.cuts)
    ]
    pauses = [
        Fault(
            0.0, "pause", service, seconds=LONG_PAUSE_SECONDS if service == "executor" else rng.uniform(3.0, 10.0)
        )
        for service in _repeat(rng, PAUSES, numbers.pauses)
    ]
    return cuts + pauses


def _draft_broker_faults(rng: random.Random, numbers: Numbers) -> list[Fault]:
    wipes: list[Kind] = ["delete" if number % 2 == 0 else "purge" for number in range(numbers.wipes)]
    faults = [Fault(0.0, kind, "rabbitmq") for kind in wipes]
    left = numbers.duplicates
    while left > 0:
        count = min(left, rng.randint(2, 5))
        faults.append(Fault(0.0, "duplicate", "rabbitmq", count=count))
        left -= count
    return faults


def _repeat(rng: random.Random, choices: Sequence, count: int) -> list:
    """Each once before any twice, in a random order."""
    drawn: list = []
    while len(drawn) < count:
        drawn += rng.sample(choices, len(choices))
    return drawn[:count]
