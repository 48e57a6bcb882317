"""The speculate stage: what it passes on, depends on and expects to take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import DataError, UsageError
from sqtool.pipeline import Job, make_plan
from sqtool.speculate.spec import SpeculateSpec
from sqtool.stages import speculate
from sqtool.stages.contract import Inputs
from sqtool.stages.measuring import START_SECONDS, TaskFacts
from sqtool.stages.table import stage_named
from tests.unit.stages.doubles import Double, double, inputs, out_of

__all__ = ["double", "inputs"]


def test_speculate(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    fake = double("sqtool.speculate.run:speculate", {"arms": {}})
    evaluate = EvaluateSpec(tasks=("t",))
    inputs = Inputs(
        **{**vars(inputs), "sections": {**inputs.sections, "evaluate": evaluate}, "earlier": tmp_path / "failed"}
    )
    assert speculate.run(SpeculateSpec(), inputs, out_of(tmp_path)).summary == {"arms": {}}
    assert (fake.arguments["baseline"], fake.arguments["candidate"]) == (inputs.model, inputs.candidate)
    assert (fake.arguments["evaluate"], fake.arguments["earlier"]) == (evaluate, tmp_path / "failed")
    assert speculate.skip(SpeculateSpec(enabled=False), inputs)
    alone = Inputs(**{**vars(inputs), "draft": None})
    assert speculate.skip(SpeculateSpec(), alone) == "the recipe has no draft model"
    assert not speculate.skip(SpeculateSpec(method="ngram"), alone)
    assert not speculate.skip(SpeculateSpec(method="draft_model"), alone), "asked for by name, it must be an error"
    assert not speculate.skip(SpeculateSpec(model="some/draft"), alone)


def test_what_speculation_depends_on(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.json").write_text("{}")
    other = {"target": "baseline", "speculative": {"model": "small"}}
    spec = SpeculateSpec.model_validate({"traffic": "log.jsonl", "arms": {"other": other}})
    assert speculate.data_files(spec, inputs) == [tmp_path / "small/config.json", tmp_path / "log.jsonl"]
    with pytest.raises(DataError, match="no such traffic file"):
        speculate.data_files(SpeculateSpec(traffic="none.jsonl"), inputs)
    # How drift and the controls are measured changes nothing here.
    one, two = EvaluateSpec(tasks=("t",)), EvaluateSpec(tasks=("t",), drift=None, control=None)
    assert speculate.counted(one) == speculate.counted(two)
    assert speculate.counted(one) != speculate.counted(EvaluateSpec(tasks=("u",)))


def test_how_long_speculation_takes(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculate, "engine_preflight", lambda inputs: None)
    facts = TaskFacts(tmp_path, ["a"] * 180, [None] * 180, ["k"] * 180, [{}] * 180, {})
    monkeypatch.setattr(speculate, "item_facts", lambda spec, root: {"t": facts})
    (tmp_path / "log.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    inputs = Inputs(**{**vars(inputs), "sections": {**inputs.sections, "evaluate": EvaluateSpec(tasks=("t",))}})
    spec = SpeculateSpec.model_validate(
        {"traffic": "log.jsonl", "requests": 80, "warmup": 0, "cancellation": None, "request_rate": 8, "repeats": 1}
    )
    estimate = speculate.preflight(spec, inputs)
    # Four starts, five arms at one closed load and one open one, two arms that answer 180 items.
    assert estimate.seconds == pytest.approx(4 * START_SECONDS + 5 * 80 / 12 + 5 * 80 / 8 + 2 * 180 / 18)
    assert (estimate.details["arms"], estimate.details["loads"]) == (5, ["c16", "r8"])


def test_speculation_is_vllms_only(inputs: Inputs) -> None:
    hf = Inputs(**{**vars(inputs), "sections": {"engine": EngineSpec(kind="hf")}})
    assert speculate.skip(SpeculateSpec(), hf) == "speculation is measured with vLLM only, and engine.kind is hf"
    asked_for = SpeculateSpec(enabled=True)
    assert speculate.skip(asked_for, hf) == ""
    with pytest.raises(UsageError, match=r"engine\.kind is hf"):
        speculate.preflight(asked_for, hf)


def test_a_gate_that_blocks_lets_nothing_go_unmeasured(inputs: Inputs) -> None:
    """Neither measured nor judged, it would be as good as approved."""
    block = SpeculateSpec(gate="block")
    alone = Inputs(**{**vars(inputs), "draft": None})
    assert speculate.skip(block, alone) == ""
    with pytest.raises(UsageError, match=r"speculate\.gate is block.*the recipe has no draft model") as caught:
        speculate.preflight(block, alone)
    for remedy in ("`draft:`", "`speculate: {gate: report}`", "`speculate: {enabled: false}`"):
        assert remedy in caught.value.remedy
    hf = Inputs(**{**vars(inputs), "sections": {**inputs.sections, "engine": EngineSpec(kind="hf")}})
    assert speculate.skip(block, hf) == ""
    with pytest.raises(UsageError, match=r"speculate\.gate is block.*engine\.kind is hf") as caught:
        speculate.preflight(block, hf)
    for remedy in ("`engine: {kind: vllm}`", "`speculate: {gate: report}`", "`speculate: {enabled: false}`"):
        assert remedy in caught.value.remedy
    assert speculate.skip(SpeculateSpec(gate="block", enabled=False), alone) == "speculate.enabled is false"


def test_the_plan_says_what_a_gate_that_blocks_lacks(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculate, "engine_fingerprint", lambda inputs: {})
    (tmp_path / "log.jsonl").write_text("{}\n")
    section = SpeculateSpec(traffic="log.jsonl", gate="block")
    sections = {**inputs.sections, "speculate": section}
    job = Job(name="mine", root=tmp_path, model=inputs.model, sections=sections, checkpoint=inputs.candidate)
    (problem,) = make_plan(job, stages=[stage_named("speculate"), stage_named("approve")]).problems
    assert isinstance(problem, UsageError)
    assert "speculate.gate is block" in problem.message


def test_arms_that_are_served_elsewhere(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(**more: Any) -> SpeculateSpec:
        arms = {name: {"url": f"http://{name}/v1", "model": name} for name in ("baseline", "quantized")}
        arms |= {name: {"url": f"http://{name}/v1", "model": name} for name in ("speculative", "both")}
        return SpeculateSpec.model_validate({"traffic": "log.jsonl", "cancellation": None, "arms": {**arms, **more}})

    facts = TaskFacts(tmp_path, ["a"] * 180, [None] * 180, ["k"] * 180, [{}] * 180, {})
    monkeypatch.setattr(speculate, "item_facts", lambda spec, root: {"t": facts})
    (tmp_path / "log.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    asked: list[list[str]] = []
    monkeypatch.setattr("sqtool.speculate.run.check_servers", lambda arms: asked.append([arm.name for arm in arms]))
    remote = EngineSpec(kind="openai", base_url="http://a", model="m")
    there = Inputs(**{**vars(inputs), "draft": None, "sections": {**inputs.sections, "engine": remote}})
    assert speculate.skip(served(), there) == "", "neither vLLM nor a draft is needed here"
    estimate = speculate.preflight(served(), there)
    assert asked == [["baseline", "quantized", "speculative", "both", "baseline_again"]]
    assert estimate.rule.startswith("0 starts")
    assert estimate.details["elsewhere"] == {name: f"http://{name}" for name in asked[0][:4]}
    servers = {name: {"endpoint": f"http://{name}", "model": name} for name in asked[0][:4]}
    assert speculate.fingerprint(served(), there) == {"servers": servers}
    own = served(mine={"target": "baseline", "speculative": {"model": "small"}})
    assert speculate.skip(own, there).startswith("speculation is measured with vLLM only")
    with pytest.raises(UsageError, match=r"engine\.kind is openai"):
        speculate.preflight(own, there)
    monkeypatch.setattr(speculate, "engine_fingerprint", lambda inputs: {"vllm": "1"})
    assert speculate.fingerprint(own, there) == {"vllm": "1", "servers": servers}
    other = served(mine={"target": "baseline", "speculative": {"model": "x"}, "url": "http://m", "model": "m"})
    assert speculate.data_files(other, there) == [tmp_path / "log.jsonl"], "its drafter is not here"
    moved = served(both={"url": "http://elsewhere", "model": "both"})
    assert speculate.fingerprint(moved, there) != speculate.fingerprint(served(), there)


def test_speculation_elsewhere_is_stale_with_its_server(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(inputs.progress), "note", lambda _, text: said.append(text))
    monkeypatch.setattr("sqtool.speculate.remote.changed", lambda arms: ("another one", ["both"]))
    assert speculate.stale({"arms": {}}, inputs) == "another one"
    monkeypatch.setattr("sqtool.speculate.remote.changed", lambda arms: ("", ["both"]))
    assert speculate.stale({}, inputs) == ""
    assert len(said) == 1
    assert "--force speculate" in said[0]
