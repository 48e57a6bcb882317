"""The in-toto attestation of a verdict: who says that these bytes passed these rules.

`attestation.intoto.json` is a DSSE envelope (for a key) or a Sigstore bundle around one (keyless) whose payload is an
in-toto Statement v1. Its subjects are the checkpoint (by the digest that the verdict was given for), MANIFEST.json and
verdict.json; its predicate says what was decided, by which rules, on which records.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sqtool.files import canonical_json, sha256_file, sha256_text
from sqtool.release.manifest import ATTESTATION, MANIFEST
from sqtool.release.reading import plain_json, small_json
from sqtool.release.signing import AUDIENCE, Signer, Trust, private_key, public_key, with_network

PREDICATE_TYPE = "urn:sqtool:verdict:2"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
CHECKPOINT = "checkpoint"
FOLDER_DIGEST = "sqtoolFolderSha256"
"""Name of the digest of a folder: sha256 over its files' names and sha256, which is no plain sha256 of anything."""


def statement(folder: Path, manifest: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    """The in-toto Statement about a release folder, as JSON value."""
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    file = manifest["verdict"]["file"]
    subjects = [
        ResourceDescriptor(name=CHECKPOINT, digest={FOLDER_DIGEST: manifest["checkpoint"]["digest"]}),
        ResourceDescriptor(name=MANIFEST, digest={"sha256": sha256_file(folder / MANIFEST)}),
        ResourceDescriptor(name=file, digest={"sha256": sha256_file(folder / file)}),
    ]
    made = Statement([subject.pb for subject in subjects], PREDICATE_TYPE, _predicate(manifest, verdict))
    made.validate()
    value: dict[str, Any] = MessageToDict(made.pb)
    return value


def _predicate(manifest: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    return {
        "release": {"name": manifest["name"], "version": manifest["version"], "created": manifest["created"]},
        "outcome": verdict["outcome"],
        "rulesSha256": sha256_text(canonical_json(verdict["spec"])),
        "recipeSha256": manifest["recipe"]["sha256"],
        "records": {
            side: {task: found["sha256"] for task, found in sorted(files.items())}
            for side, files in verdict["inputs"].items()
        },
        "metrics": [
            {key: metric[key] for key in ("metric", "outcome", "items", "difference", "lower", "upper", "margin")}
            for metric in verdict["metrics"]
            if metric["gated"]
        ],
        "tool": {"name": "sqtool", "version": manifest["provenance"].get("versions", {}).get("sqtool", "")},
    }


def write_attestation(folder: Path, manifest: dict[str, Any], verdict: dict[str, Any], signer: Signer) -> None:
    """Sign the statement about `folder` and write it there, durably."""
    payload = canonical_json(statement(folder, manifest, verdict)).encode()
    text = _with_key(payload, signer) if signer.key is not None else _keyless(payload)
    with (folder / ATTESTATION).open("x", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _with_key(payload: bytes, signer: Signer) -> str:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    assert signer.key is not None
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(private_key(signer.key, signer.password)))
    return json.dumps(envelope.to_dict(), indent=2) + "\n"


def _keyless(payload: bytes) -> str:
    from sigstore.dsse import Statement
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken, detect_credential
    from sigstore.sign import SigningContext

    def sign() -> str:
        token = detect_credential(AUDIENCE)
        if token is None:
            raise RuntimeError("the identity of this job is gone")
        context = SigningContext.from_trust_config(ClientTrustConfig.production())
        with context.signer(IdentityToken(token, AUDIENCE)) as made:
            return str(made.sign_dsse(Statement(payload)).to_json())

    return str(with_network(sign))


def attestation_problems(
    folder: Path, manifest: dict[str, Any], verdict: dict[str, Any], trust: Trust | None
) -> list[str]:
    """What is wrong with a release's attestation: the statement differs from the folder, or (given whom to trust) the
    signature does not hold."""
    path = folder / ATTESTATION
    try:
        envelope = small_json(path)
        inner = envelope.get("dsseEnvelope", envelope)
        found = plain_json(_decode(inner["payload"]))
        wanted = statement(folder, manifest, verdict)
    except FileNotFoundError:
        return [f"{ATTESTATION}: missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        return [f"{ATTESTATION}: is no attestation ({type(error).__name__}: {error})"]
    problems = []
    if inner.get("payloadType") != PAYLOAD_TYPE:
        problems.append(f"{ATTESTATION}: payload type {inner.get('payloadType')!r}, expected {PAYLOAD_TYPE!r}")
    if found != wanted:
        told = found if isinstance(found, dict) else {}
        parts = sorted(key for key in {**wanted, **told} if wanted.get(key) != told.get(key))
        problems.append(f"{ATTESTATION}: does not speak of these files ({', '.join(parts)} differ)")
    if trust is not None:
        problem = _key_problem(envelope, trust) if trust.key is not None else _sigstore_problem(path, trust)
        if problem:
            problems.append(f"{ATTESTATION}: {problem}")
    return problems


def _decode(text: str) -> bytes:
    import base64

    return base64.b64decode(text, validate=True)


def _key_problem(envelope: dict[str, Any], trust: Trust) -> str:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    assert trust.key is not None
    key = SSlibKey.from_crypto(public_key(trust.key))
    try:
        parsed = Envelope.from_dict(envelope)
        # The key's name in the envelope is a hint that anybody can write: what counts is whether this key verifies.
        for signature in parsed.signatures.values():
            signature.keyid = key.keyid
        parsed.verify([key], 1)
    except VerificationError:
        return "its signature does not verify with this key"
    except Exception as error:  # noqa: BLE001 - the libraries raise what they like over a hostile file; all of it means no
        return f"its signature cannot be read ({type(error).__name__}: {error})"
    return ""


def _sigstore_problem(path: Path, trust: Trust) -> str:
    from sigstore.models import Bundle
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    verifier = with_network(Verifier.production)
    try:
        bundle = Bundle.from_json(path.read_bytes())
        verifier.verify_dsse(bundle, Identity(identity=trust.identity, issuer=trust.issuer))
    except Exception as error:  # noqa: BLE001 - as above
        return f"its signature does not verify ({' '.join(str(error).split())})"
    return ""
