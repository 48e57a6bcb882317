"""The release stage: what it passes on, and who signs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sqtool.cli.runs import _signed_with
from sqtool.errors import InfrastructureError, SqtoolError, UsageError
from sqtool.files import write_json
from sqtool.gate.spec import GateSpec
from sqtool.release.history import rollback
from sqtool.release.signing import make_keys
from sqtool.release.spec import ReleaseSpec
from sqtool.stages import release
from sqtool.stages.contract import Inputs
from tests.pipeline.fakes import make_job
from tests.unit.release.conftest import RECIPE, make_case
from tests.unit.stages.doubles import Double, double, inputs, out_of

__all__ = ["double", "inputs"]


def test_release(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    (inputs.folders["calibrate"] / "coverage.json").write_text("{}")
    fake = double("sqtool.release.publish:publish", {"path": "artifacts/releases/mine/1"})
    result = release.run(ReleaseSpec(), inputs, out_of(tmp_path))
    given = fake.arguments
    assert (given["spec"].name, given["recipe_text"]) == ("mine", "name: mine\n")
    assert list(given["extras"]) == ["coverage.json"]
    sides = (inputs.folders["baseline"] / "records", inputs.folders["evaluate"] / "records", None)
    assert given["records"] == sides
    assert release.stale(result.summary, inputs) == "the release artifacts/releases/mine/1 is gone"


def test_release_says_what_it_was_made_from(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    for stage, parts in {
        "calibrate": {"content": {"model": "m" * 64}, "data": {"data/pool.jsonl": "p" * 64, "/home/a/own.jsonl": "o"}},
        "baseline": {"content": {"model": "m" * 64}, "data": {"data/test.jsonl": "t" * 64}},
    }.items():
        write_json(inputs.folders[stage] / "result.json", {"parts": parts})
    gate_section = GateSpec().model_dump(mode="json")
    resolved = {"seed": 3, "gate": gate_section, "evaluate": {"generation": {"seed": 5}, "seed": None}}
    inputs = replace(inputs, recipe={**inputs.recipe, "resolved": resolved})
    fake = double("sqtool.release.publish:publish", {"path": "artifacts/releases/mine/1"})
    release.run(ReleaseSpec(), inputs, out_of(tmp_path))
    provenance = fake.arguments["provenance"]
    data = {"data/pool.jsonl": "p" * 64, "own.jsonl": "o", "data/test.jsonl": "t" * 64}
    assert provenance["digests"] == {"model": "m" * 64, "data": data}
    assert provenance["seeds"] == {"recipe": inputs.seed, "evaluate.generation.seed": 5}
    assert provenance["trust_remote_code"] is False
    assert fake.arguments["rules"] == gate_section


def test_release_is_made_again_by_another_key_and_a_bad_key_stops_the_plan(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SQTOOL_SIGNING_KEY", raising=False)
    assert release.fingerprint(ReleaseSpec(), inputs) == {"signer": "none"}
    release.preflight(ReleaseSpec(), inputs)
    key = make_keys(tmp_path / "release.key")[0]
    signed = ReleaseSpec.model_validate({"sign": {"key": str(key)}})
    first = release.fingerprint(signed, inputs)["signer"]
    assert first["method"] == "key"
    monkeypatch.setenv("SQTOOL_SIGNING_KEY", str(key))
    assert release.fingerprint(ReleaseSpec(), inputs) == {"signer": first}
    missing = ReleaseSpec.model_validate({"sign": {"key": "gone.key"}})
    assert "does not exist" in release.fingerprint(missing, inputs)["signer"]
    with pytest.raises(UsageError, match="does not exist"):
        release.preflight(missing, inputs)


def test_the_key_of_the_command_line_goes_before_the_recipes(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    recipe = ReleaseSpec.model_validate({"sign": {"keyless": True}, "version": "v1"})
    found = _signed_with(replace(job, sections={**job.sections, "release": recipe}), tmp_path / "k").sections["release"]
    assert found == ReleaseSpec.model_validate({"sign": {"key": str(tmp_path / "k")}, "version": "v1"})


def lose_weights(place: Path) -> None:
    (place / "model.safetensors").unlink()


def cut_weights(place: Path) -> None:
    (place / "model.safetensors").write_bytes(b"\0" * 10)


def lose_records(place: Path) -> None:
    shutil.rmtree(place / "extra")


def add_weights(place: Path) -> None:
    (place / "model-2.safetensors").write_bytes(b"more")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lose_weights, "model.safetensors: missing"),
        (cut_weights, "model.safetensors: changed (size 10, was 25600)"),
        (lose_records, "extra/part.bin: missing"),
        (add_weights, "model-2.safetensors: extra"),
    ],
)
def test_a_damaged_release_is_not_released(
    inputs: Inputs, tmp_path: Path, harm: Callable[[Path], None], told: str
) -> None:
    case = make_case(tmp_path / "project")
    inputs = replace(inputs, root=case.root)
    summary = case.publish()
    assert release.stale(summary, inputs) == ""
    place = case.root / summary["path"]
    harm(place)
    assert release.stale(summary, inputs) == f"the release {summary['path']} is damaged ({told})"
    left = sorted(place.rglob("*"))
    with pytest.raises(InfrastructureError, match=re.escape(told)) as caught:
        case.publish()
    assert caught.value.remedy == f"Move {place} away and run again."
    assert sorted(place.rglob("*")) == left, "nothing is overwritten"
    place.rename(tmp_path / "away")
    assert release.stale(summary, inputs) == f"the release {summary['path']} is gone"
    assert release.stale(case.publish(), inputs) == ""
    assert case.latest() == "v1"


@pytest.mark.parametrize("version", ["v1", None])
def test_a_release_without_its_manifest_is_not_overwritten(inputs: Inputs, tmp_path: Path, version: str | None) -> None:
    case = make_case(tmp_path / "project")
    summary = case.publish(spec={"version": version})
    place = case.root / summary["path"]
    (place / "MANIFEST.json").unlink()
    assert release.stale(summary, replace(inputs, root=case.root)) == f"the release {summary['path']} is gone"
    with pytest.raises(SqtoolError) as caught:
        case.publish(spec={"version": version})
    assert caught.value.remedy.startswith(f"Move {place} away")
    assert (place / "model.safetensors").is_file()


def test_the_pointer_of_the_newest_release_is_put_back(inputs: Inputs, tmp_path: Path) -> None:
    case = make_case(tmp_path / "project")
    inputs = replace(inputs, root=case.root)
    first = case.publish()
    second = case.publish(spec={"version": "v2"}, recipe_text=RECIPE + "seed: 1\n")
    latest = case.releases / "awq4" / "latest"
    for dangling in (False, True):
        latest.unlink()
        if dangling:
            latest.symlink_to("v9")
        assert release.stale(first, inputs) == ""
        assert release.stale(second, inputs) == "artifacts/releases/awq4/latest is gone"
        case.publish()
        assert case.latest() == "v2", "an older release does not become the latest"
        latest.unlink()
        case.publish(spec={"version": "v2"}, recipe_text=RECIPE + "seed: 1\n")
        assert (case.latest(), release.stale(second, inputs)) == ("v2", "")
    rollback(case.releases, "awq4")
    assert (release.stale(first, inputs), release.stale(second, inputs)) == ("", "")
    latest.unlink()
    assert release.stale(second, inputs) == "", "it was rolled back"
    assert release.stale(first, inputs) == "artifacts/releases/awq4/latest is gone"
    case.publish()
    assert case.latest() == "v1"
