"""release: a checkpoint that passed, published whole or not at all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqtool.errors import SqtoolError
from sqtool.files import canonical_json, read_json, write_text
from sqtool.release.spec import LATEST, ReleaseSpec
from sqtool.release.speculation_card import facts_of, speculative_words
from sqtool.runfolder import read_result
from sqtool.stages.baseline import RECORDS
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.gate import VERDICT

SHOWN = 3
EXTRAS = {
    "speculate.json": ("speculate", "speculate.json"),
    "speculation_verdict.json": ("approve", "speculation_verdict.json"),
    "coverage.json": ("calibrate", "coverage.json"),
    "drift.json": ("evaluate", "drift.json"),
}


def run(spec: ReleaseSpec, inputs: Inputs, out: Path) -> StageResult:
    """Publish below the folder of all releases; `out` keeps the result and a pointer to it."""
    from sqtool.release.publish import publish

    assert inputs.candidate is not None
    speculation = _speculation(inputs)
    files = {name: inputs.folders[stage] / file for name, (stage, file) in EXTRAS.items() if stage in inputs.folders}
    summary = publish(
        spec.model_copy(update={"name": spec.name or inputs.recipe["name"]}),
        checkpoint=inputs.candidate,
        verdict=inputs.folders["gate"] / VERDICT,
        root=inputs.root,
        # A run without a recipe file (`sqtool gate --baseline ...`) never comes here.
        recipe_text=inputs.recipe["text"] or canonical_json(inputs.recipe["resolved"]) + "\n",
        extras={name: path for name, path in files.items() if path.is_file()},
        provenance={
            "recipe": inputs.recipe["name"],
            "seed": inputs.seed,
            "seeds": {"recipe": inputs.seed, **seeds(inputs.recipe["resolved"])},
            "model": _baseline_name(inputs),
            "trust_remote_code": inputs.trust_remote_code,
            "digests": digests(inputs),
            **({"speculation": speculation} if speculation else {}),
            # Who reads the manifest must see that code of others had a hand in it; an empty list says that none had.
            "foreign_code": list(inputs.recipe.get("foreign_code", ())),
        },
        progress=inputs.progress,
        records=(
            inputs.folders["baseline"] / RECORDS,
            inputs.folders["evaluate"] / RECORDS,
            inputs.folders["control"] / RECORDS if "control" in inputs.folders else None,
        ),
        rules=inputs.recipe["resolved"].get("gate"),
    )
    words = speculative_words(speculation)
    if words:
        summary["serve_speculative"] = f"{summary['serve']} {shlex.join(words)}"
    write_text(out / "where.txt", f"{summary['path']}\n")
    return StageResult(summary)


def _baseline_name(inputs: Inputs) -> str:
    """The baseline as the recipe names it; by its last name alone where that is a place on this machine."""
    model = str(inputs.recipe["model"])
    named = str(inputs.recipe.get("resolved", {}).get("model") or model)
    chosen = named if Path(model).is_absolute() else model
    return Path(chosen).name if Path(chosen).is_absolute() or chosen.startswith("~") else chosen


def _speculation(inputs: Inputs) -> dict[str, Any] | None:
    """What the approve stage said, for the card, the manifest and the serve command."""
    if "approve" not in inputs.folders:
        return None
    verdict = read_json(inputs.folders["approve"] / EXTRAS["speculation_verdict.json"][1])
    return facts_of(verdict, root=inputs.root, draft=_drafter(verdict, inputs))


def _drafter(verdict: dict[str, Any], inputs: Inputs) -> Path | None:
    """The section's own drafter where it names one, else the recipe's draft model."""
    section = inputs.recipe.get("resolved", {}).get("speculate") or {}
    own = section.get("model") if isinstance(section, dict) else None
    return inputs.root / own if own and verdict.get("method") != "ngram" else inputs.draft


def digests(inputs: Inputs) -> dict[str, Any]:
    """Of what the release was made from: `model` (the baseline's folder) and `data` (sha256 of each data file that a
    stage read), as these stages recorded them."""
    model, data = "", {}
    for name in ("calibrate", "quantize", "baseline", "evaluate"):
        result = read_result(inputs.folders[name]) if name in inputs.folders else None
        parts = result.get("parts", {}) if result is not None else {}
        model = model or parts.get("content", {}).get("model", "")
        for path, digest in parts.get("data", {}).items():
            # Where somebody's files lie is nobody else's business.
            data[Path(path).name if Path(path).is_absolute() else path] = digest
    return {**({"model": model} if model else {}), "data": data}


def seeds(resolved: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every seed in a resolved recipe below its top level, by its dotted name."""
    found: dict[str, Any] = {}
    for key, value in resolved.items():
        if isinstance(value, Mapping):
            found |= seeds(value, f"{prefix}{key}.")
        elif key == "seed" and prefix and value is not None:
            found[prefix + key] = value
    return found


def fingerprint(spec: ReleaseSpec, inputs: Inputs) -> dict[str, Any]:
    """Who would sign: another key makes another release."""
    from sqtool.release.signing import signer_of

    try:
        signer = signer_of(spec.sign, inputs.root)
    except SqtoolError as error:
        return {"signer": error.message}
    return {"signer": signer.identity if signer else "none"}


def stale(summary: dict[str, Any], inputs: Inputs) -> str:
    """By names and sizes: hashing every release at every run would take minutes. Publishing again then hashes it, says
    what is wrong and how to repair it, and never overwrites it; `latest` is put back."""
    from sqtool.release import history, staging
    from sqtool.release.manifest import MANIFEST, verify_manifest

    path = summary.get("path", "")
    place = inputs.root / path
    if not (place / MANIFEST).is_file():
        return f"the release {path} is gone"
    problems = verify_manifest(place, hashes=False)
    if problems:
        return f"the release {path} is damaged ({'; '.join(problems[:SHOWN])})"
    home = place.parent
    if staging.latest_version(home) is None and history.current(home) == place.name:
        return f"{summary.get('latest') or home / LATEST} is gone"
    return ""


def preflight(spec: ReleaseSpec, inputs: Inputs) -> Estimate:
    """Raises for a key that cannot sign: in the end there would be a checkpoint and no release."""
    from sqtool.release.signing import signer_of

    signer_of(spec.sign, inputs.root)
    return Estimate(2.0, rule="copies the checkpoint")
