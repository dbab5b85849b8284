"""Hashing: the limits of bcrypt, the same work for everybody, a bounded number at a time."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from unittest import mock

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.errors import Unavailable
from services.users.passwords import MAX_BYTES, PasswordHasher

HASHER = PasswordHasher(rounds=4, parallel=2, line=10)


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=18))
def test_a_password_matches_its_own_hash_and_no_other(password: str):
    hashed = HASHER.hash(password)

    assert HASHER.matches(password, hashed)
    assert not HASHER.matches(password + "x", hashed)


def test_a_password_is_never_cut():
    hashed = HASHER.hash("x" * MAX_BYTES)

    assert not HASHER.matches("x" * (MAX_BYTES + 1), hashed)
    with pytest.raises(ValueError, match="72"):
        HASHER.hash("x" * (MAX_BYTES + 1))


def test_nobodys_password_is_compared_with_the_same_cost():
    with mock.patch.object(bcrypt, "checkpw", wraps=bcrypt.checkpw) as compare:
        matched = HASHER.matches("whatever", None)

    assert not matched
    (_, compared_with), _ = compare.call_args
    assert compared_with.startswith(b"$2b$04$")


def test_an_overlong_password_is_compared_too():
    with mock.patch.object(bcrypt, "checkpw", wraps=bcrypt.checkpw) as compare:
        assert not HASHER.matches("x" * 5000, HASHER.hash("x" * 72))

    assert compare.call_count == 1


def test_no_more_than_the_allowed_number_run_at_a_time():
    running, most, lock, go_on = 0, 0, threading.Lock(), threading.Event()

    def slow(_password: bytes, _salt: bytes) -> bytes:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go_on.wait(5)
        with lock:
            running -= 1
        return b"hash"

    hasher = PasswordHasher(rounds=4, parallel=2, line=6)
    with mock.patch.object(bcrypt, "hashpw", slow), ThreadPoolExecutor(6) as threads:
        futures = [threads.submit(hasher.hash, "password") for _ in range(6)]
        go_on.set()
        assert [future.result() for future in futures] == ["hash"] * 6

    assert most <= 2


def test_whoever_waits_too_long_is_told_to_come_back():
    hasher = PasswordHasher(rounds=4, parallel=1, line=2, wait_seconds=0.01)
    entered, leave = threading.Event(), threading.Event()

    def stuck(_password: bytes, _salt: bytes) -> bytes:
        entered.set()
        leave.wait(5)
        return b"hash"

    with mock.patch.object(bcrypt, "hashpw", stuck), ThreadPoolExecutor(1) as threads:
        first = threads.submit(hasher.hash, "password")
        entered.wait(5)
        with pytest.raises(Unavailable) as refused:
            hasher.hash("password")
        leave.set()
        first.result()

    assert refused.value.retry_after_seconds == 2


def test_a_full_line_turns_people_away_at_once():
    hasher = PasswordHasher(rounds=4, parallel=1, line=12, wait_seconds=60)
    leave = threading.Event()
    inside = threading.Semaphore(0)

    def stuck(_password: bytes, _salt: bytes) -> bytes:
        inside.release()
        leave.wait(5)
        return b"hash"

    with mock.patch.object(bcrypt, "hashpw", stuck), ThreadPoolExecutor(13) as threads:
        futures = [threads.submit(hasher.hash, "password") for _ in range(13)]
        done, _ = wait(futures, timeout=5, return_when=FIRST_COMPLETED)
        leave.set()

    (refused,) = done
    assert isinstance(refused.exception(), Unavailable)
