"""Signing a release folder with OpenSSF model-signing, and checking that signature.

`model.sig` is a Sigstore bundle over the sha256 of every other file in the folder, MANIFEST.json and the attestation
included. It is made with an elliptic-curve key (P-256, P-384, P-521; PEM) or, keyless, with the OpenID Connect identity
of a CI job, for which Sigstore issues a certificate of ten minutes. The same signer signs the attestation.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import InfrastructureError, UsageError
from sqtool.release.manifest import FETCHED, SIGNATURE
from sqtool.release.reading import small_text
from sqtool.release.spec import SignSpec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

KEY_VARIABLE = "SQTOOL_SIGNING_KEY"
PASSWORD_VARIABLE = "SQTOOL_SIGNING_PASSWORD"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAKE_ONE = "`sqtool keygen NAME` makes a pair; so does `openssl ecparam -name prime256v1 -genkey -noout -out NAME.pem`."
HOSTS = "fulcio.sigstore.dev, rekor.sigstore.dev and tuf-repo-cdn.sigstore.dev"
AUDIENCE = "sigstore"


@dataclass(frozen=True)
class Signer:
    """Who signs: the private key at `key`, or (None) a Sigstore identity."""

    key: Path | None
    password: bytes | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What the manifest says of the signer: the method, and the key's fingerprint where there is one."""
        if self.key is None:
            return {"method": "keyless"}
        return {"method": "key", "public_key_sha256": fingerprint(private_key(self.key, self.password).public_key())}


@dataclass(frozen=True)
class Trust:
    """Whom a verifier trusts: the public key at `key`, or a Sigstore identity (an e-mail address or a workflow's URL)
    that `issuer` vouches for."""

    key: Path | None = None
    identity: str = ""
    issuer: str = ""


def signer_of(spec: SignSpec | None, root: Path, environment: Mapping[str, str] = os.environ) -> Signer | None:
    """Who signs by this section, else by the environment; None when nobody does.

    `UsageError` for a key that cannot be read, `InfrastructureError` when keyless signing is not possible here: both
    before anything is built.
    """
    password = environment.get(PASSWORD_VARIABLE, "").encode() or None
    if spec is not None and spec.keyless:
        _keyless_possible()
        return Signer(None)
    given = spec.key if spec is not None else environment.get(KEY_VARIABLE)
    if not given:
        return None
    path = Path(given).expanduser()
    path = path if path.is_absolute() else root / path
    private_key(path, password)
    return Signer(path, password)


def private_key(path: Path, password: bytes | None = None) -> EllipticCurvePrivateKey:
    """The elliptic-curve private key in a PEM file; `UsageError` when there is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password)
    except FileNotFoundError:
        raise UsageError(f"the signing key {path} does not exist", remedy=MAKE_ONE) from None
    except OSError as error:
        raise UsageError(f"the signing key {path} cannot be read: {error.strerror or error}") from None
    except TypeError:
        wanted = "has no password, and one was given" if password else "has a password, and none was given"
        raise UsageError(f"the signing key {path} {wanted}", remedy=f"{PASSWORD_VARIABLE} holds it.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{path} holds no private key in PEM form, or the password is wrong", remedy=MAKE_ONE
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise UsageError(f"{path} is no elliptic-curve key of {', '.join(CURVES)}", remedy=MAKE_ONE)
    return key


def public_key(path: Path) -> EllipticCurvePublicKey:
    """The elliptic-curve public key in a PEM file; `UsageError` when there is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        data = path.read_bytes()
        key = load_pem_public_key(data)
    except OSError as error:
        raise UsageError(f"the public key {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, UnsupportedAlgorithm):
        private = b"PRIVATE KEY" in data
        raise UsageError(
            f"{path} holds no public key in PEM form" + ("; it is a private key" if private else ""),
            remedy="Give the .pub file beside it." if private else "`openssl ec -in KEY -pubout` prints one.",
        ) from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise UsageError(f"{path} is no elliptic-curve key of {', '.join(CURVES)}")
    return key


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """Hex sha256 of the public key's DER form (SubjectPublicKeyInfo), as `openssl dgst` of `-outform DER` gives it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def make_keys(path: Path, password: bytes | None = None) -> tuple[Path, Path, str]:
    """A new P-256 pair: `path` (PEM, PKCS #8, readable by its owner alone) and `<path>.pub`.

    Returns both paths and the public key's fingerprint. `UsageError` when a file is there: keys are never overwritten.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists() or file.is_symlink():
            raise UsageError(f"{file} exists; a key is never overwritten", remedy="Choose another name.")
    key = generate_private_key(SECP256R1())
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(secret)
        with public.open("xb") as handle:
            handle.write(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}") from None
    return path, public, fingerprint(key.public_key())


def sign_folder(folder: Path, signer: Signer) -> None:
    """Write `folder/model.sig` over every other file. `InfrastructureError` when Sigstore cannot be reached."""
    from model_signing.signing import Config

    config = Config().set_hashing_config(_hashing())
    if signer.key is not None:
        # The annotation says str; cryptography, which gets the password as it is, wants bytes.
        config.use_elliptic_key_signer(private_key=signer.key, password=signer.password)  # type: ignore[arg-type]
        config.sign(folder, folder / SIGNATURE)
    else:
        with_network(lambda: config.use_sigstore_signer(use_ambient_credentials=True).sign(folder, folder / SIGNATURE))
    with (folder / SIGNATURE).open("rb") as handle:
        os.fsync(handle.fileno())


def signature_problem(folder: Path, trust: Trust) -> str:
    """What is wrong with `folder/model.sig` for somebody who trusts `trust`, in one sentence; "" when nothing is."""
    from model_signing.verifying import Config

    config = Config().set_hashing_config(_hashing())
    if trust.key is not None:
        public_key(trust.key)
        config.use_elliptic_key_verifier(public_key=trust.key)
    else:
        with_network(lambda: config.use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.issuer))
    try:
        small_text(folder / SIGNATURE)
        config.verify(folder, folder / SIGNATURE)
    except FileNotFoundError:
        return f"{SIGNATURE}: missing"
    except Exception as error:  # noqa: BLE001 - the libraries raise what they like over a hostile file; all of it means no
        return f"{SIGNATURE}: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    """Why model-signing says no, in words: its own message about changed files prints raw digests."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "InvalidSignature":
        return "the signature does not verify with this key"
    if text.startswith("Key mismatch"):
        return "was made with another key"
    changed = re.findall(r"Hash mismatch for \\*'([^'\\]+)", text)
    parts = [f"{name} changed" for name in changed]
    for kind in ("Extra", "Missing"):
        found = re.search(rf"{kind} files (?:found )?in model .*?: ([^\"]*)", text)
        parts += [f"{kind.lower()}: {found[1]}"] if found else []
    if parts:
        return f"the signature was made over other files ({'; '.join(parts)})"
    return f"is no valid signature of this folder ({text or type(error).__name__})"


def with_network(action: Any) -> Any:
    """Do what needs Sigstore's servers; `InfrastructureError` with a remedy when that fails."""
    try:
        return action()
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise InfrastructureError(
            f"Sigstore cannot be used here: {reason}",
            remedy=f"Keyless signing needs {HOSTS}. Without a network use a key: `release: {{sign: {{key: PATH}}}}`.",
        ) from error


def _keyless_possible() -> None:
    """`InfrastructureError` now rather than after the release was built."""
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import detect_credential

    if with_network(lambda: detect_credential(AUDIENCE)) is None:
        raise InfrastructureError(
            "keyless signing needs an OpenID Connect identity, and this machine offers none",
            remedy="Run in a CI job that has one (on GitHub: `permissions: {id-token: write}`), or sign with a key.",
        )
    with_network(ClientTrustConfig.production)


def _hashing() -> Any:
    from model_signing.hashing import Config

    return Config().use_file_serialization(hashing_algorithm="sha256").set_ignored_paths(paths=[SIGNATURE, *FETCHED])
