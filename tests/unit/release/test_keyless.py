"""Keyless signing against doubles of Sigstore that are bound to its real signatures: no test reaches its servers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sigstore.dsse
import sigstore.models
import sigstore.oidc
import sigstore.sign
import sigstore.verify
from sigstore.errors import VerificationError

from sqtool.release.attestation import ATTESTATION, _decode, _keyless, _sigstore_problem
from sqtool.release.signing import Trust

PAYLOAD = b'{"_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "a", "digest": {"sha256": "' + b"0" * 64
PAYLOAD += b'"}}], "predicateType": "urn:x", "predicate": {"a": 1}}'
TRUST = Trust(identity="ci@example.org", issuer="https://issuer.example.org")


def test_the_attestation_is_signed_with_the_identity_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Context:
        @contextmanager
        def signer(self, token: Any) -> Iterator[Any]:
            inspect.signature(sigstore.sign.SigningContext.signer).bind(self, token)
            seen["token"] = token

            def sign_dsse(statement: sigstore.dsse.Statement) -> Any:
                inspect.signature(sigstore.sign.Signer.sign_dsse).bind(None, statement)
                seen["statement"] = statement
                return SimpleNamespace(to_json=lambda: '{"dsseEnvelope": {}}')

            yield SimpleNamespace(sign_dsse=sign_dsse)

    def token(raw: str, client_id: str) -> str:
        inspect.signature(sigstore.oidc.IdentityToken).bind(raw, client_id)
        return f"{raw} for {client_id}"

    assert inspect.ismethod(sigstore.sign.SigningContext.from_trust_config)
    monkeypatch.setattr(sigstore.models.ClientTrustConfig, "production", lambda: "trust")
    monkeypatch.setattr(sigstore.sign.SigningContext, "from_trust_config", lambda _: Context())
    monkeypatch.setattr(sigstore.oidc, "detect_credential", lambda _: "raw")
    monkeypatch.setattr(sigstore.oidc, "IdentityToken", token)
    assert json.loads(_keyless(PAYLOAD)) == {"dsseEnvelope": {}}
    assert seen["token"] == "raw for sigstore"
    assert json.loads(seen["statement"]._contents) == json.loads(PAYLOAD)


@pytest.mark.parametrize("holds", [True, False])
def test_a_keyless_attestation_is_checked_for_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    seen: list[Any] = []

    class Verifier:
        def verify_dsse(self, bundle: Any, policy: Any) -> tuple[str, bytes]:
            inspect.signature(sigstore.verify.Verifier.verify_dsse).bind(self, bundle, policy)
            seen.append(policy)
            if not holds:
                raise VerificationError("the certificate is somebody else's")
            return "application/vnd.in-toto+json", PAYLOAD

    assert inspect.ismethod(sigstore.verify.Verifier.production)
    monkeypatch.setattr(sigstore.verify.Verifier, "production", Verifier)
    monkeypatch.setattr(sigstore.models.Bundle, "from_json", lambda raw: raw)
    (tmp_path / ATTESTATION).write_bytes(b"{}")
    problem = _sigstore_problem(tmp_path / ATTESTATION, TRUST)
    assert (problem == "") is holds
    assert holds or "somebody else's" in problem
    assert seen[0]._identity == "ci@example.org"


def test_a_bundle_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigstore.verify.Verifier, "production", lambda: None)
    (tmp_path / ATTESTATION).write_bytes(b"{}")
    assert "does not verify" in _sigstore_problem(tmp_path / ATTESTATION, TRUST)


def test_payloads_are_base64() -> None:
    with pytest.raises(ValueError, match="base64"):
        _decode("!")
