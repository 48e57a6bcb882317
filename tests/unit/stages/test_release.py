"""The release stage: what it passes on, and who signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sqtool.cli.runs import _signed_with
from sqtool.errors import UsageError
from sqtool.files import write_json
from sqtool.gate.spec import GateSpec
from sqtool.release.signing import make_keys
from sqtool.release.spec import ReleaseSpec
from sqtool.stages import release
from sqtool.stages.contract import Inputs
from tests.pipeline.fakes import make_job
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
