"""The release's CycloneDX ML-BOM (bom.cdx.json, CycloneDX 1.6): model, base model, data sets, software, hashes.

The library (cyclonedx-python-lib) makes and validates everything but `modelCard`, which it has no class for: that part
of the standard is added to its JSON here, and tests hold the whole against the standard's schema.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.release.manifest import Entry
from sqtool.release.reading import small_json

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

    from sqtool.gate.verdict import MetricVerdict, Verdict

BOM = "bom.cdx.json"
MODEL, BASE = "model", "base-model"
NAMESPACE = uuid.UUID("6f1f2f5c-5b0e-5f0a-9a39-0e4cf1b2a1d7")
"""Of serial numbers that follow from a release's content."""
PROPERTY = "sqtool:"
BOUND = "The verdict holds for the engine, device class and settings in verdict.json, on traffic like the test items."


def ml_bom(
    *,
    name: str,
    version: str,
    created: str,
    content: str,
    files: Mapping[str, Entry],
    digest: str,
    config: Mapping[str, Any],
    verdict: Verdict,
    provenance: Mapping[str, Any],
) -> str:
    """The BOM's JSON text. `files` are the checkpoint's, `digest` is its folder digest, `config` its config.json;
    `content` identifies what is released. Of `provenance`: `model`, `digests` (model, data), `versions`."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from cyclonedx.output.json import JsonV1Dot6

    digests = provenance.get("digests") or {}
    base = Component(
        name=str(provenance.get("model") or "unnamed"),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=BASE,
        properties=[Property(name=f"{PROPERTY}folder-sha256", value=str(digests.get("model") or "unknown"))],
    )
    model = Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL,
        description=f"Quantized from {base.name}",
        pedigree=Pedigree(ancestors=[Component(name=base.name, type=ComponentType.MACHINE_LEARNING_MODEL)]),
        properties=[
            Property(name=f"{PROPERTY}folder-sha256", value=digest),
            Property(name=f"{PROPERTY}verdict", value=verdict.outcome),
        ],
        components=[
            Component(
                name=path,
                type=ComponentType.FILE,
                bom_ref=f"file:{path}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
            )
            for path, entry in sorted(files.items())
        ],
    )
    data = [
        Component(
            name=path,
            type=ComponentType.DATA,
            bom_ref=f"data:{path}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha)],
        )
        for path, sha in sorted((digests.get("data") or {}).items())
    ]
    software = _software(provenance.get("versions") or {})
    bom = Bom(components=[base, *data, *software], serial_number=uuid.uuid5(NAMESPACE, content))
    bom.metadata.component = model
    bom.metadata.timestamp = datetime.fromisoformat(created)
    bom.metadata.tools.components.add(
        Component(name="sqtool", type=ComponentType.APPLICATION, version=_own_version(provenance))
    )
    bom.register_dependency(model, [base, *data, *software])
    value = json.loads(JsonV1Dot6(bom).output_as_string())
    value["metadata"]["component"]["modelCard"] = _model_card(config, verdict, [str(c.bom_ref) for c in data])
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _own_version(provenance: Mapping[str, Any]) -> str:
    from sqtool import __version__

    return str((provenance.get("versions") or {}).get("sqtool", __version__))


def _software(versions: Mapping[str, Any]) -> list[Component]:
    """The packages that quantized, and those of vLLM's environment that measured."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    found = []
    for place, packages in (("", versions), ("vllm-environment:", versions.get("vllm_environment") or {})):
        for package, version in sorted(packages.items()):
            if not isinstance(version, str) or package in ("python", "sqtool"):
                continue
            found.append(
                Component(
                    name=package,
                    version=version,
                    type=ComponentType.LIBRARY,
                    bom_ref=f"{place}{package}",
                    purl=PackageURL("pypi", None, package, version),
                )
            )
    return found


def _model_card(config: Mapping[str, Any], verdict: Verdict, data: list[str]) -> dict[str, Any]:
    architectures = config.get("architectures")
    family, architecture = config.get("model_type"), architectures[0] if architectures else None
    parameters: dict[str, Any] = {"task": "text-generation"}
    if isinstance(family, str):
        parameters["architectureFamily"] = family
    if isinstance(architecture, str):
        parameters["modelArchitecture"] = architecture
    if data:
        parameters["datasets"] = [{"ref": ref} for ref in data]
    parameters |= {"inputs": [{"format": "text"}], "outputs": [{"format": "text"}]}
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {
            "performanceMetrics": [part for m in (*verdict.metrics, *verdict.slices) for part in _metrics(m)]
        },
        "considerations": {"technicalLimitations": [BOUND]},
    }


def _metrics(metric: MetricVerdict) -> list[dict[str, Any]]:
    """The candidate's score, and its difference to the baseline's, which is what the interval is of."""
    slice_ = {} if metric.slice_field is None else {"slice": f"{metric.slice_field}={metric.slice_value}"}
    interval = {"lowerBound": repr(metric.lower), "upperBound": repr(metric.upper)}
    difference = f"{metric.metric}, candidate minus baseline (negative is worse)"
    return [
        {"type": metric.metric, "value": repr(metric.candidate), **slice_},
        {"type": difference, "value": repr(metric.difference), **slice_, "confidenceInterval": interval},
    ]


def bom_problems(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Where a release's BOM speaks of other bytes than its manifest, of another release or another time."""
    try:
        value = small_json(folder / BOM)
        component = value["metadata"]["component"]
        hashes = {part["name"]: part["hashes"][0]["content"] for part in component.get("components", ())}
        properties = {p["name"]: p["value"] for p in component["properties"]}
        created = datetime.fromisoformat(value["metadata"]["timestamp"])
        listed = {stored: manifest["files"][stored]["sha256"] for stored in manifest["checkpoint"]["files"].values()}
        problems = []
        if hashes != listed:
            problems.append(f"{BOM}: lists other files or hashes than {_differ(hashes, listed)}")
        if properties.get(f"{PROPERTY}folder-sha256") != manifest["checkpoint"]["digest"]:
            problems.append(f"{BOM}: names another checkpoint than the manifest")
        if (component["name"], component["version"]) != (manifest["name"], manifest["version"]):
            problems.append(f"{BOM}: is of {component['name']} {component['version']}")
        if created != datetime.fromisoformat(manifest["created"]):
            problems.append(f"{BOM}: was made at {created.isoformat()}, the manifest says {manifest['created']}")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return [f"{BOM}: is no bill of materials of this release ({type(error).__name__}: {error})"]
    return problems


def _differ(found: Mapping[str, str], listed: Mapping[str, str]) -> str:
    names = sorted(n for n in {**found, **listed} if found.get(n) != listed.get(n))
    return f"the manifest ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
