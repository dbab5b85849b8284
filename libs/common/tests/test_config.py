from __future__ import annotations

from dataclasses import dataclass

import pytest
from environs import Env, EnvError

from libs.common.config import (
    EXIT_BAD_CONFIG,
    Secret,
    load_config,
    masked,
    read_environment,
    read_log_level,
    read_secret,
)


@dataclass(frozen=True, slots=True)
class Example:
    password: Secret
    port: int


def read_example(env: Env) -> Example:
    return Example(password=read_secret(env, "EXAMPLE_PASSWORD"), port=env.int("EXAMPLE_PORT"))


def test_a_good_environment_becomes_the_config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXAMPLE_PASSWORD", "hush")
    monkeypatch.setenv("EXAMPLE_PORT", "80")

    config = load_config(read_example)

    assert (config.password.reveal(), config.port) == ("hush", 80)


@pytest.mark.parametrize(
    ("password", "port", "named"),
    [
        (None, "80", "EXAMPLE_PASSWORD"),
        ("", "80", "EXAMPLE_PASSWORD"),
        ("x", None, "EXAMPLE_PORT"),
        ("x", "y", "PORT"),
    ],
)
def test_the_process_ends_with_one_line_that_names_the_variable(monkeypatch, capsys, password, port, named):
    for name, value in (("EXAMPLE_PASSWORD", password), ("EXAMPLE_PORT", port)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as ended:
        load_config(read_example)

    printed = capsys.readouterr().err
    assert ended.value.code == EXIT_BAD_CONFIG
    assert named in printed
    assert printed.count("\n") == 1


def test_a_secret_never_shows(monkeypatch: pytest.MonkeyPatch):
    secret = Secret("hush")

    shown = f"{secret} {secret!r} {[secret]} {masked(Example(secret, 80))} {Example(secret, 80)}"

    assert "hush" not in shown


@pytest.mark.parametrize(("read", "name"), [(read_environment, "ENVIRONMENT"), (read_log_level, "LOG_LEVEL")])
def test_a_choice_outside_the_list_is_refused(monkeypatch, read, name: str):
    monkeypatch.setenv(name, "nonsense")

    with pytest.raises(EnvError, match=name):
        read(Env())
