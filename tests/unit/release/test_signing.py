"""Keys, and what signs with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sqtool.errors import InfrastructureError, UsageError
from sqtool.release import signing
from sqtool.release.signing import Signer, Trust, make_keys, private_key, public_key, sign_folder, signature_problem
from sqtool.release.spec import SignSpec

from .conftest import Case, check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    (place / "sub").mkdir(parents=True)
    (place / "weights").write_bytes(b"weights")
    (place / "sub" / "part").write_bytes(b"part")
    return place


def test_sign_and_check(folder: Path, key: Path, other_key: Path) -> None:
    sign_folder(folder, Signer(key))
    mine, other = (Trust(Path(f"{k}.pub")) for k in (key, other_key))
    assert signature_problem(folder, mine) == ""
    assert "another key" in signature_problem(folder, other)
    (folder / "weights").write_bytes(b"Weights")
    assert "weights changed" in signature_problem(folder, mine)
    (folder / "weights").write_bytes(b"weights")
    (folder / "new").write_bytes(b"")
    assert "extra: new" in signature_problem(folder, mine)
    (folder / "new").unlink()
    (folder / "sub" / "part").unlink()
    assert "missing: sub/part" in signature_problem(folder, mine)
    (folder / "model.sig").unlink()
    assert signature_problem(folder, mine) == "model.sig: missing"


def test_openssl_makes_keys_that_serve(folder: Path, tmp_path: Path) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    sign_folder(folder, Signer(key))
    assert signature_problem(folder, Trust(public)) == ""
    der = subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-outform", "DER"], check=True, capture_output=True)
    assert signing.fingerprint(public_key(public)) == signing.hashlib.sha256(der.stdout).hexdigest()


def test_the_private_key_is_for_its_owner_alone_and_nothing_is_overwritten(tmp_path: Path) -> None:
    key, public, _ = make_keys(tmp_path / "k")
    assert key.stat().st_mode & 0o777 == 0o600
    assert public == tmp_path / "k.pub"
    with pytest.raises(UsageError, match="never overwritten"):
        make_keys(key)
    key.unlink()
    with pytest.raises(UsageError, match="never overwritten"):
        make_keys(key)
    with pytest.raises(UsageError, match="cannot write"):
        make_keys(tmp_path / "gone" / "k")


def test_a_password(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, public, _ = make_keys(tmp_path / "k", b"secret")
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "secret")
    signer = signing.signer_of(SignSpec(key=str(key)), tmp_path)
    assert signer is not None
    sign_folder(folder, signer)
    assert signature_problem(folder, Trust(public)) == ""
    with pytest.raises(UsageError, match="none was given"):
        private_key(key)
    with pytest.raises(UsageError, match="password is wrong"):
        private_key(key, b"wrong")


def test_keys_that_are_none(tmp_path: Path, key: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        private_key(tmp_path / "gone")
    with pytest.raises(UsageError, match="no private key"):
        private_key(Path(f"{key}.pub"))
    with pytest.raises(UsageError, match="cannot be read"):
        public_key(tmp_path / "gone")
    with pytest.raises(UsageError, match="it is a private key"):
        public_key(key)
    with pytest.raises(UsageError, match="cannot be read"):
        private_key(tmp_path)
    for number, other in enumerate((ed25519.Ed25519PrivateKey.generate(), generate_private_key(SECP256K1()))):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(UsageError, match="no elliptic-curve key of"):
            private_key(path)


def test_who_signs(tmp_path: Path, key: Path, other_key: Path) -> None:
    assert signing.signer_of(None, tmp_path, {}) is None
    assert signing.signer_of(None, tmp_path, {signing.KEY_VARIABLE: str(key)}) == Signer(key)
    section = SignSpec(key=str(other_key))
    assert signing.signer_of(section, tmp_path, {signing.KEY_VARIABLE: str(key)}) == Signer(other_key)
    (tmp_path / "near").write_bytes(key.read_bytes())
    assert signing.signer_of(SignSpec(key="near"), tmp_path, {}) == Signer(tmp_path / "near")


@pytest.mark.parametrize("values", [{}, {"key": "a", "keyless": True}])
def test_one_way_of_signing(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one of them"):
        SignSpec.model_validate(values)


def test_keyless_is_refused_before_anything_is_built_where_there_is_no_identity(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda _: None)
    with pytest.raises(InfrastructureError, match="OpenID Connect identity") as caught:
        case.publish(spec={"sign": {"keyless": True}})
    assert "or sign with a key" in caught.value.remedy
    assert not case.releases.exists()


def test_keyless_is_refused_without_a_network(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda _: "token")

    def unreachable() -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("sigstore.models.ClientTrustConfig.production", unreachable)
    with pytest.raises(InfrastructureError, match="Network is unreachable") as caught:
        case.publish(spec={"sign": {"keyless": True}})
    assert "Without a network use a key" in caught.value.remedy


def test_another_key_makes_another_release(case: Case, key: Path, other_key: Path) -> None:
    def version(sign: Path | None) -> str:
        spec = {"version": None, **({"sign": {"key": str(sign)}} if sign else {})}
        return str(case.publish(spec=spec)["version"])

    assert len({version(None), version(key), version(other_key), version(key)}) == 3


def test_the_key_in_the_environment_signs(case: Case, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signing.KEY_VARIABLE, str(key))
    place = case.published()
    assert check(place, key).signature == "valid"
    assert key.read_text() not in "".join(p.read_text(errors="replace") for p in place.rglob("*") if p.is_file())
