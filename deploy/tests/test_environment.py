"""The settings file: made once, secrets random, later only added to."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import environment

EXAMPLE = """# Settings
PASSWORD=
PORT=8000
# OPTIONAL=1
"""


@pytest.fixture(autouse=True)
def _own_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example = tmp_path / "example"
    example.write_text(EXAMPLE)
    monkeypatch.setattr(environment, "EXAMPLE", example)
    monkeypatch.setattr(environment, "find_facts", lambda: {"DOCKER_GID": "7"})


def settings(path: Path) -> dict[str, str]:
    return environment.read_settings(path.read_text())


def test_a_new_file_has_random_secrets_the_given_values_and_mode_600(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    environment.write_environment(first, {"PORT": "18000", "EXTRA": "a=b"})
    environment.write_environment(second, {})

    assert settings(first)["PORT"] == "18000"
    assert settings(first)["EXTRA"] == "a=b"
    assert "OPTIONAL" not in settings(first)
    assert len(settings(first)["PASSWORD"]) == 32
    assert settings(first)["PASSWORD"] != settings(second)["PASSWORD"]
    assert first.stat().st_mode & 0o777 == 0o600


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "env"
    environment.write_environment(path, {})
    before = path.read_text()

    is_new = environment.write_environment(path, {"PORT": "9"})

    assert not is_new
    assert path.read_text() == before


def test_a_later_versions_variables_are_added_and_own_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("PORT=9000\n# mine\nMINE=1\n")

    environment.write_environment(path, {})

    assert settings(path)["PORT"] == "9000"
    assert settings(path)["MINE"] == "1"
    assert len(settings(path)["PASSWORD"]) == 32
    assert "# mine" in path.read_text()


def test_facts_are_renewed_unless_the_operator_set_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "env"
    environment.write_environment(path, {})
    path.write_text(path.read_text() + "BEHIND=1\n")
    monkeypatch.setattr(environment, "find_facts", lambda: {"DOCKER_GID": "8", "CPU_LIMIT": "2"})

    environment.write_environment(path, {})

    assert settings(path)["DOCKER_GID"] == "8"
    assert settings(path)["BEHIND"] == "1"
    assert path.read_text().count(environment.FACTS_HEADING) == 1

    path.write_text("CPU_LIMIT=1\n" + path.read_text())

    environment.write_environment(path, {})

    assert settings(path)["CPU_LIMIT"] == "1"


def test_the_gateways_address_is_the_first_of_several():
    settings = {"GATEWAY_BIND": "127.0.0.1", "GATEWAY_PORT": "8000-8001"}

    assert environment.gateway_url(settings) == "http://127.0.0.1:8000"
