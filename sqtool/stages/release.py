"""release: a checkpoint that passed, published whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqtool.files import canonical_json, write_text
from sqtool.release.spec import ReleaseSpec
from sqtool.stages.baseline import RECORDS
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.gate import VERDICT

EXTRAS = {
    "speculate.json": ("speculate", "speculate.json"),
    "coverage.json": ("calibrate", "coverage.json"),
    "drift.json": ("evaluate", "drift.json"),
}


def run(spec: ReleaseSpec, inputs: Inputs, out: Path) -> StageResult:
    """Publish below the folder of all releases; `out` keeps the result and a pointer to it."""
    from sqtool.release.publish import publish

    assert inputs.candidate is not None
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
            "model": str(inputs.recipe["model"]),
            # Who reads the manifest must see that code of others had a hand in it; an empty list says that none had.
            "foreign_code": list(inputs.recipe.get("foreign_code", ())),
        },
        progress=inputs.progress,
        records=(
            inputs.folders["baseline"] / RECORDS,
            inputs.folders["evaluate"] / RECORDS,
            inputs.folders["control"] / RECORDS if "control" in inputs.folders else None,
        ),
    )
    write_text(out / "where.txt", f"{summary['path']}\n")
    return StageResult(summary)


def stale(summary: dict[str, Any], inputs: Inputs) -> str:
    path = summary.get("path", "")
    return "" if (inputs.root / path / "MANIFEST.json").is_file() else f"the release {path} is gone"


def preflight(_spec: ReleaseSpec, _inputs: Inputs) -> Estimate:
    return Estimate(2.0, rule="copies the checkpoint")
