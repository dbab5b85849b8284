"""The users service over a database of the test's own, with cheap hashes and a key made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flask import Flask

from libs.common.config import Secret
from libs.common.postgres import Pool, open_pool
from services.users.app import build_app
from services.users.bootstrap import AdminBootstrap
from services.users.config import UsersConfig
from services.users.keys import KeySet
from services.users.passwords import PasswordHasher
from services.users.tests.builders import PASSWORD, SERVICE_TOKEN, Api, Person

KID = "test-key"
ADMIN_EMAIL = "admin@example.com"


def to_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(scope="session")
def pem() -> bytes:
    return to_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))


@pytest.fixture(scope="session")
def other_pem() -> bytes:
    return to_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))


@pytest.fixture
def keys_dir(tmp_path: Path, pem: bytes) -> Path:
    (tmp_path / f"{KID}.pem").write_bytes(pem)
    return tmp_path


@pytest.fixture
def keys(keys_dir: Path) -> KeySet:
    return KeySet(keys_dir, active_kid=KID, is_production=False, look_again_seconds=0)


@pytest.fixture(scope="session")
def passwords() -> PasswordHasher:
    return PasswordHasher(rounds=4, parallel=4, line=100)


@pytest.fixture(scope="session")
def shared_pool(make_shared_database) -> Iterator[Pool]:
    pool = open_pool(make_shared_database("users").dsn, name="users-test", max_size=10)
    yield pool
    pool.close()


@pytest.fixture
def pool(shared_pool: Pool) -> Pool:
    """A pool of connections to a database without users."""
    with shared_pool.connection() as connection:
        connection.execute("DELETE FROM users.accounts; DELETE FROM users.deletions")
    return shared_pool


@pytest.fixture(scope="session")
def app_over(
    pem: bytes, passwords: PasswordHasher, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Flask]:
    """`app_over(pool)`: the app on that pool's database; `passwords` and `bootstrap` may be given too."""
    keys_dir = tmp_path_factory.mktemp("keys")
    (keys_dir / f"{KID}.pem").write_bytes(pem)
    config = UsersConfig(
        environment="development",
        log_level="info",
        database_url=Secret("postgresql:///unused"),
        internal_token=Secret(SERVICE_TOKEN),
        keys_dir=keys_dir,
        active_kid=KID,
        token_issuer="task-runner",
        token_audience="task-runner",
        access_token_life=timedelta(hours=1),
        refresh_token_life=timedelta(days=14),
        admin_email=ADMIN_EMAIL,
        admin_password=Secret(PASSWORD),
        bcrypt_rounds=4,
        bcrypt_parallel=4,
        web_threads=16,
    )
    keys = KeySet(keys_dir, active_kid=KID, is_production=False)

    def build(pool: Pool, passwords: PasswordHasher = passwords, bootstrap: AdminBootstrap | None = None) -> Flask:
        bootstrap = bootstrap or a_bootstrap(pool, passwords)
        return build_app(config, pool=pool, keys=keys, passwords=passwords, bootstrap=bootstrap)

    return build


def a_bootstrap(pool: Pool, passwords: PasswordHasher) -> AdminBootstrap:
    return AdminBootstrap(pool=pool, passwords=passwords, email=ADMIN_EMAIL, password=Secret(PASSWORD))


@pytest.fixture
def bootstrap(pool: Pool, passwords: PasswordHasher) -> AdminBootstrap:
    return a_bootstrap(pool, passwords)


@pytest.fixture(scope="session")
def shared_app(shared_pool: Pool, app_over: Callable[..., Flask]) -> Flask:
    return app_over(shared_pool)


@pytest.fixture
def app(shared_app: Flask, bootstrap: AdminBootstrap) -> Flask:
    """The service with nobody but the operator's admin."""
    bootstrap.run_once()
    return shared_app


@pytest.fixture
def api(app: Flask) -> Api:
    return Api(app)


@pytest.fixture
def admin(api: Api) -> Person:
    return api.log_in(ADMIN_EMAIL)


@pytest.fixture
def ada(api: Api) -> Person:
    """A user without any special role."""
    return api.sign_up(name="Ada")
