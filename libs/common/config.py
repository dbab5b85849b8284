"""Reads a service's settings from the environment, once, at its start."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from environs import Env, EnvError, validate

Config = TypeVar("Config")

# gunicorn stops when a worker exits with 3 and starts it again, for ever, on any other status.
EXIT_BAD_CONFIG = 3

ENVIRONMENTS = ("development", "production")
DEVELOPMENT_KEY_ID = "development"


class Secret:
    """A setting that never shows in a log, a traceback or a printed config."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"


def read_secret(env: Env, name: str) -> Secret:
    """The named variable as a `Secret`; EnvError when it is missing or empty."""
    return Secret(env.str(name, validate=validate.Length(min=1)))


def read_secret_url(env: Env, name: str, *schemes: str) -> Secret:
    """The named variable, a URL of one of these schemes with a password in it; EnvError when it is another.

    Without this a service with a slip in one would try to connect for ever.
    """
    url = read_secret(env, name)
    starts = tuple(f"{scheme}://" for scheme in schemes)
    if not url.reveal().startswith(starts):
        raise EnvError(f"{name} must start with {' or '.join(starts)}")
    return url


def read_environment(env: Env) -> str:
    return env.str("ENVIRONMENT", "development", validate=validate.OneOf(ENVIRONMENTS))


def read_log_level(env: Env) -> str:
    levels = ("debug", "info", "warning", "error")
    return env.str("LOG_LEVEL", "info", validate=validate.OneOf(levels))


def load_config(from_env: Callable[[Env], Config]) -> Config:
    """The service's frozen config, or the process ends with one line that names the variable.

    `from_env` reads each variable through environs; it may raise EnvError for a rule across variables.
    """
    try:
        return from_env(Env())
    except EnvError as error:
        exit_with_config_error(str(error))


def exit_with_config_error(message: str) -> NoReturn:
    sys.stderr.write(f"configuration error: {message}\n")
    sys.exit(EXIT_BAD_CONFIG)


def masked(config: Any) -> dict[str, str]:
    """A config dataclass as name → text, secrets masked, for the log line at the start."""
    return {field.name: str(getattr(config, field.name)) for field in dataclasses.fields(config)}
