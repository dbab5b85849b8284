"""The key set: which files it takes, and that it looks again."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from libs.common.errors import Unavailable
from services.users.keys import DEVELOPMENT_KEY_FINGERPRINT, KeyRefused, KeySet, fingerprint, read_key
from services.users.tests.conftest import KID

DEVELOPMENT_KEY = Path(__file__).parents[3] / "zarf/keys/development.pem"


def open_keys(folder: Path, active_kid: str = KID, *, is_production: bool = False) -> KeySet:
    return KeySet(folder, active_kid=active_kid, is_production=is_production, look_again_seconds=0)


def test_a_key_that_is_dropped_in_verifies_without_a_restart(keys: KeySet, keys_dir: Path, other_pem: bytes):
    assert keys.find_key("second") is None

    (keys_dir / "second.pem").write_bytes(other_pem)

    assert keys.find_key("second") is not None
    assert [key["kid"] for key in keys.publish()["keys"]] == ["second", KID]
    assert keys.get_signing_key().kid == KID


def test_a_key_that_is_taken_away_verifies_no_more(keys: KeySet, keys_dir: Path, other_pem: bytes):
    (keys_dir / "second.pem").write_bytes(other_pem)
    keys.find_key("second")

    (keys_dir / "second.pem").unlink()

    assert keys.find_key("second") is None


def test_a_key_that_is_replaced_is_read_again(keys: KeySet, keys_dir: Path, other_pem: bytes):
    before = keys.publish()

    (keys_dir / f"{KID}.pem").write_bytes(other_pem)

    assert keys.publish() != before


def test_the_folder_is_not_read_for_each_key(keys_dir: Path, other_pem: bytes):
    keys = KeySet(keys_dir, active_kid=KID, is_production=False, look_again_seconds=3600)
    keys.find_key(KID)

    (keys_dir / "second.pem").write_bytes(other_pem)

    assert keys.find_key("second") is None


def test_signing_waits_while_the_active_key_is_missing(keys: KeySet, keys_dir: Path):
    (keys_dir / f"{KID}.pem").unlink()

    with pytest.raises(Unavailable):
        keys.get_signing_key()
    with pytest.raises(KeyRefused, match="can't be read"):
        keys.check_active_key()


@pytest.mark.parametrize("kid", ["../secret", "../../x", "/etc/passwd", "", ".", "..", "a/b", "x\x00", "é"])
def test_an_id_that_looks_like_a_path_leads_nowhere(keys: KeySet, keys_dir: Path, other_pem: bytes, kid: str):
    (keys_dir.parent / "secret.pem").write_bytes(other_pem)

    assert keys.find_key(kid) is None
    with pytest.raises(KeyRefused):
        open_keys(keys_dir, kid).check_active_key()


def test_a_file_that_is_no_key_is_left_out_and_the_others_stay(keys: KeySet, keys_dir: Path):
    (keys_dir / "garbage.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n")
    (keys_dir / "empty.pem").write_bytes(b"")
    (keys_dir / "folder.pem").mkdir()
    (keys_dir / "README.md").write_text("not a key")

    assert [key["kid"] for key in keys.publish()["keys"]] == [KID]


def test_a_short_key_is_refused(tmp_path: Path):
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  Short on purpose.
    path = tmp_path / "short.pem"
    path.write_bytes(short.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    with pytest.raises(KeyRefused, match="at least 2048 bits"):
        read_key(path, is_production=False)


def test_a_key_that_is_not_rsa_is_refused(tmp_path: Path):
    path = tmp_path / "curve.pem"
    curve = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    with pytest.raises(KeyRefused, match="not an RSA key"):
        read_key(path, is_production=False)


def test_keys_in_other_forms_are_refused(tmp_path: Path, pem: bytes):
    key = load_pem_private_key(pem, password=None)
    forms = {
        "pkcs1": key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        "encrypted": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        "public": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }

    for name, text in forms.items():
        path = tmp_path / f"{name}.pem"
        path.write_bytes(text)
        with pytest.raises(KeyRefused, match="PKCS#8"):
            read_key(path, is_production=False)


def test_the_development_key_is_known_by_its_fingerprint():
    assert fingerprint(read_key(DEVELOPMENT_KEY, is_production=False).public_key()) == DEVELOPMENT_KEY_FINGERPRINT


def test_production_refuses_the_development_key_by_its_name(tmp_path: Path, pem: bytes):
    (tmp_path / "development.pem").write_bytes(pem)

    with pytest.raises(KeyRefused, match="development key"):
        open_keys(tmp_path, "development", is_production=True).check_active_key()


def test_production_refuses_a_copy_of_the_development_key(tmp_path: Path, pem: bytes):
    (tmp_path / "mine.pem").write_bytes(DEVELOPMENT_KEY.read_bytes())
    (tmp_path / f"{KID}.pem").write_bytes(pem)
    keys = open_keys(tmp_path, is_production=True)

    with pytest.raises(KeyRefused, match="copy of the development key"):
        open_keys(tmp_path, "mine", is_production=True).check_active_key()
    assert keys.find_key("mine") is None
    keys.check_active_key()
