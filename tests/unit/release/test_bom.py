"""The ML-BOM, against the standard's own schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from sqtool.files import sha256_file
from sqtool.release.bom import BOM, bom_problems
from sqtool.release.manifest import read_manifest

from .conftest import Case, make_case

VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)


@pytest.fixture
def release(case: Case) -> Path:
    return case.published()


def read(place: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((place / BOM).read_text())
    return value


def test_it_is_cyclonedx(release: Path) -> None:
    assert VALIDATOR.validate_str((release / BOM).read_text()) is None
    broken = read(release)
    broken["metadata"]["component"]["modelCard"]["colour"] = "red"
    assert VALIDATOR.validate_str(json.dumps(broken)) is not None, "the validator looks at the model card"


def test_slices_and_lower_is_better_are_cyclonedx_too(tmp_path: Path) -> None:
    case = make_case(tmp_path, gate={"slices": ["kind"]})
    place = case.published()
    assert VALIDATOR.validate_str((place / BOM).read_text()) is None
    metrics = read(place)["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {m.get("slice") for m in metrics} == {None, "kind=recall"}


def test_it_names_model_base_data_software_and_hashes(release: Path) -> None:
    value = read(release)
    model = value["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "awq4", "v1")
    hashes = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    assert hashes["model.safetensors"] == sha256_file(release / "model.safetensors")
    assert model["pedigree"]["ancestors"][0]["name"] == "artifacts/reference/target"
    parts = {part["bom-ref"]: part for part in value["components"]}
    assert parts["base-model"]["properties"][0]["value"] == "a" * 64
    assert parts["data:data/calibration.jsonl"]["hashes"][0]["content"] == "b" * 64
    assert parts["torch"]["purl"].startswith("pkg:pypi/torch@")
    (needs,) = (d["dependsOn"] for d in value["dependencies"] if d["ref"] == "model")
    assert set(needs) == set(parts)
    card = model["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": "data:data/calibration.jsonl"}]
    score, difference = card["quantitativeAnalysis"]["performanceMetrics"]
    assert (score["type"], score["value"]) == ("recall.exact_match", "1.0")
    assert float(difference["confidenceInterval"]["lowerBound"]) < 0


def test_it_says_when_it_is_of_something_else(release: Path) -> None:
    manifest = read_manifest(release)
    assert bom_problems(release, manifest) == []
    for change, told in (
        ({"name": "other"}, "is of awq4 v1"),
        ({"created": "2020-01-01T00:00:00+00:00"}, "the manifest says 2020"),
        ({"checkpoint": {**manifest["checkpoint"], "digest": "c" * 64}}, "names another checkpoint"),
        ({"checkpoint": {**manifest["checkpoint"], "files": {"config.json": "config.json"}}}, "lists other files"),
    ):
        (problem,) = bom_problems(release, {**manifest, **change})
        assert told in problem


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"metadata": 1}'])
def test_what_is_none(release: Path, text: str) -> None:
    manifest = read_manifest(release)
    (release / BOM).write_text(text)
    (problem,) = bom_problems(release, manifest)
    assert "no bill of materials" in problem


def test_missing(release: Path) -> None:
    manifest = read_manifest(release)
    (release / BOM).unlink()
    assert "FileNotFoundError" in bom_problems(release, manifest)[0]
