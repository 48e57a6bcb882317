"""A release in a few facts, from its manifest and its verdict; nothing is checked here."""

from __future__ import annotations

from typing import Any

from sqtool.errors import DataError
from sqtool.files import read_json
from sqtool.release.history import Release
from sqtool.release.manifest import read_manifest


def describe(release: Release) -> dict[str, Any]:
    """Texts for a person, and the gated metrics of verdict.json. `DataError` for a folder that is no whole release."""
    manifest = read_manifest(release.folder)
    try:
        verdict = read_json(release.folder / manifest["verdict"]["file"])
        provenance, digests, signing = manifest["provenance"], manifest["digests"], manifest["signing"]
        return {
            "name": release.name,
            "version": release.version,
            "latest": release.latest,
            "withdrawn": release.withdrawn,
            "folder": str(release.folder),
            "published": manifest["created"],
            "verdict": verdict["outcome"],
            "signature": "none" if not signing else signing["method"],
            "signer": (signing or {}).get("public_key_sha256", ""),
            "model": provenance.get("model", ""),
            "checkpoint_digest": digests["checkpoint"],
            "model_digest": digests.get("model", ""),
            "recipe_sha256": digests["recipe"],
            "verdict_sha256": digests["verdict"],
            "sqtool": provenance.get("versions", {}).get("sqtool", ""),
            "bytes": sum(entry["size"] for entry in manifest["files"].values()),
            "metrics": [metric for metric in verdict["metrics"] if metric["gated"]],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(release.folder, f"is no whole release ({type(error).__name__}: {error})") from None
