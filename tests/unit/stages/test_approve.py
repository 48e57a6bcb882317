"""The stages approve and release on folders as the stages before them leave them."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.files import read_json, write_json
from sqtool.gate.judge import judge
from sqtool.gate.verdict import Stopped, Verdict
from sqtool.pipeline import Job, make_plan
from sqtool.release.spec import ReleaseSpec
from sqtool.speculate.spec import SpeculateSpec
from sqtool.stages import approve, release, speculate
from sqtool.stages.contract import Estimate, Inputs
from sqtool.stages.table import stage_named
from tests.unit.advise.reports import report
from tests.unit.stages.doubles import Double, double, inputs, out_of
from tests.unit.stages.test_speculation import ENGINE, GATE, records

__all__ = ["double", "inputs"]


@pytest.fixture
def measured(inputs: Inputs) -> Inputs:
    """Both sides' records, the gate's verdict and the arms."""
    folders = inputs.folders
    for side, wrong in (("baseline", 0), ("evaluate", 1)):
        records(folders[side] / "records", wrong)
        write_json(folders[side] / "result.json", {"summary": {"engine": ENGINE}})
    verdict = judge(GATE, folders["baseline"] / "records", folders["evaluate"] / "records")
    (folders["gate"] / "verdict.json").write_text(verdict.to_json())
    write_json(folders["speculate"] / "speculate.json", report())
    for arm, wrong in (("speculative", 0), ("both", 1)):
        records(folders["speculate"] / "arms" / arm / "quality" / "records", wrong)
    return dataclasses.replace(inputs, sections={**inputs.sections, "gate": GATE})


def test_approve_judges_on_what_the_stages_left(measured: Inputs, tmp_path: Path) -> None:
    out = out_of(tmp_path)
    summary = approve.run(SpeculateSpec(), measured, out).summary
    assert (summary["approved"], summary["gate"], summary["reasons"]) == (True, "report", [])
    assert summary["arms"] == {"speculative": True, "both": True}
    assert summary["advice"] == "Serve the quantized checkpoint with speculation (num_speculative_tokens 4)."
    written = read_json(out / "speculation_verdict.json")
    assert written["pairs"]["both/quantized"]["outcome"] == "PASS"
    assert not (measured.folders["speculate"] / "speculation_verdict.json").exists()
    approve.check(SpeculateSpec(gate="block"), summary)


def test_an_evaluation_that_ended_early_is_compared_on_what_it_asked(measured: Inputs, tmp_path: Path) -> None:
    path = measured.folders["gate"] / "verdict.json"
    verdict = Verdict.from_json(path.read_text())
    (task,) = verdict.inputs["candidate"]
    stopped = Stopped(task=task, items=300, of=verdict.inputs["candidate"][task].items)
    path.write_text(verdict.model_copy(update={"stopped": (stopped,)}).to_json())
    for side in ("baseline", "evaluate"):
        records(measured.folders[side] / "records", 0, items=range(300))
    assert approve.run(SpeculateSpec(), measured, out_of(tmp_path)).summary["approved"]


def test_few_items_are_the_recipes_wish(measured: Inputs, tmp_path: Path) -> None:
    folder = measured.folders["speculate"] / "arms/both/quality/records"
    records(folder, 1, items=range(300))
    spec = SpeculateSpec.model_validate({"quality": {"items": 300}})
    assert approve.run(spec, measured, out_of(tmp_path)).summary["approved"]


def test_nothing_is_judged_where_nothing_was_measured(measured: Inputs) -> None:
    assert approve.skip(SpeculateSpec(), measured) == ""
    folders = {name: path for name, path in measured.folders.items() if name != "speculate"}
    assert approve.skip(SpeculateSpec(), dataclasses.replace(measured, folders=folders))
    assert approve.preflight(SpeculateSpec(), measured).seconds


def test_what_a_refusal_means_measures_no_arm_again() -> None:
    assert speculate.counted(SpeculateSpec(gate="block")) == speculate.counted(SpeculateSpec(gate="report"))


def test_rules_are_judged_on_what_was_measured(measured: Inputs, tmp_path: Path) -> None:
    """The fall of the acceptance rate is 0.03 [0.01, 0.05]."""
    spec = SpeculateSpec.model_validate({"rules": {"max_acceptance_drop": 0.1}})
    out = out_of(tmp_path)
    summary = approve.run(spec, measured, out).summary
    assert summary["approved"]
    assert [(rule["rule"], rule["load"], rule["status"]) for rule in summary["rules"]] == [
        ("max_acceptance_drop", "c16", "kept")
    ]
    assert read_json(out / "speculation_verdict.json")["rules"] == summary["rules"]
    tight = SpeculateSpec.model_validate({"rules": {"max_acceptance_drop": 0.005}})
    summary = approve.run(tight, measured, out).summary
    assert summary["reasons"] == [
        "speculate.rules.max_acceptance_drop at c16 is not kept: 0.03 [0.01, 0.05], the limit is 0.005"
    ]


def test_a_rule_that_changes_is_judged_again_and_measures_no_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculate, "engine_fingerprint", lambda inputs: {})
    monkeypatch.setattr(speculate, "preflight", lambda spec, inputs: Estimate())
    for name in ("model", "draft", "checkpoint"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text("{}\n")
    stages = [stage_named(name) for name in ("speculate", "approve")]

    def job(**section: Any) -> Job:
        spec = SpeculateSpec.model_validate({"traffic": "log.jsonl", **section})
        sections = {"speculate": spec, "engine": EngineSpec(), "evaluate": EvaluateSpec(tasks=("t",)), "gate": GATE}
        model, draft, checkpoint = (tmp_path / name for name in ("model", "draft", "checkpoint"))
        return Job(name="mine", root=tmp_path, model=model, sections=sections, draft=draft, checkpoint=checkpoint)

    def to_run(job: Job) -> dict[str, str]:
        plan = make_plan(job, stages=stages)
        assert not plan.problems
        return {step.stage.name: step.why for step in plan.steps if step.action == "run"}

    before = job(rules={"max_p99_ratio": 1.1})
    assert set(to_run(before)) == {"speculate", "approve"}
    for step in make_plan(before, stages=stages).steps:
        step.folder.mkdir(parents=True)
        write_json(step.folder / "result.json", {"digest": step.digest, "parts": step.parts})
    assert to_run(before) == {}
    assert to_run(job(rules={"max_p99_ratio": 1.2})) == {"approve": "recipe: speculate.rules.max_p99_ratio changed"}
    assert set(to_run(job(gate="block"))) == {"approve"}
    assert set(to_run(job(requests=64, rules={"max_p99_ratio": 1.1}))) == {"speculate", "approve"}


@pytest.mark.parametrize("approved", [True, False])
def test_a_release_gets_the_drafter_only_where_it_is_approved(
    measured: Inputs, double: Callable[..., Double], tmp_path: Path, approved: bool
) -> None:
    verdict = out_of(tmp_path)
    if not approved:
        records(measured.folders["speculate"] / "arms/both/quality/records", 100)
    approve.run(SpeculateSpec(), measured, verdict)
    config = {"method": "draft_model", "model": "draft", "num_speculative_tokens": 4}
    fake = double("sqtool.release.publish:publish", {"path": "releases/1", "serve": "vllm serve releases/1"})
    given = dataclasses.replace(measured, folders={**measured.folders, "approve": verdict})
    place = tmp_path / "release.tmp"
    place.mkdir()
    summary: dict[str, Any] = release.run(ReleaseSpec(), given, place).summary
    said = fake.arguments["provenance"]["speculation"]
    assert (said["approved"], said["config"]) == (approved, config)
    assert "speculation_verdict.json" in fake.arguments["extras"]
    if approved:
        words = shlex.split(summary["serve_speculative"])
        assert words[:4] == ["vllm", "serve", "releases/1", "--speculative-config"]
        assert json.loads(words[4]) == config
    else:
        assert "serve_speculative" not in summary
        assert said["reasons"][0].startswith("both: REGRESSED against quantized")


def test_a_drafter_of_the_section_goes_before_the_recipes(
    measured: Inputs, double: Callable[..., Double], tmp_path: Path
) -> None:
    value = report()
    value["speculative_config"]["model"] = "other"
    write_json(measured.folders["speculate"] / "speculate.json", value)
    verdict = out_of(tmp_path)
    approve.run(SpeculateSpec(), measured, verdict)
    fake = double("sqtool.release.publish:publish", {"path": "releases/1", "serve": "vllm serve releases/1"})
    given = dataclasses.replace(
        measured,
        folders={**measured.folders, "approve": verdict},
        recipe={**measured.recipe, "resolved": {"speculate": {"model": "models/other"}}},
    )
    place = tmp_path / "release.tmp"
    place.mkdir()
    release.run(ReleaseSpec(), given, place)
    assert fake.arguments["provenance"]["speculation"]["config"]["model"] == "models/other"
