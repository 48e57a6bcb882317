"""The gate stage: what it judges, stops and plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EvaluateSpec
from sqtool.errors import DataError, InconclusiveError, InfrastructureError, RegressedError, UsageError
from sqtool.files import write_json
from sqtool.gate.spec import GateSpec
from sqtool.stages import gate
from sqtool.stages.contract import Inputs
from tests.unit.stages.doubles import double, inputs, out_of, records

__all__ = ["double", "inputs"]


DIFFERS = {"file": "generation_config.json", "field": "temperature", "baseline": "missing", "candidate": "0.6"}


def test_a_difference_refuses_whatever_the_scores_are(inputs: Inputs, tmp_path: Path) -> None:
    for side in ("baseline", "evaluate"):
        records(inputs.folders[side], [1.0] * 400)
    path = inputs.folders["evaluate"] / "result.json"
    value = json.loads(path.read_text())
    value["summary"]["differences"] = [DIFFERS]
    path.write_text(json.dumps(value))
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}, "inconclusive": "allow"})
    out = out_of(tmp_path)
    summary = gate.run(spec, inputs, out).summary
    assert summary["outcome"] == "REGRESSED"
    with pytest.raises(RegressedError, match=r"generation_config\.json:temperature is 0\.6") as caught:
        gate.check(spec, summary)
    assert "allow_differences: [generation_config.json:temperature]" in caught.value.remedy
    allowed = spec.model_copy(update={"allow_differences": ["generation_config.json:temperature"]})
    summary = gate.run(allowed, inputs, out).summary
    assert summary["outcome"] == "PASS"
    gate.check(allowed, summary)
    assert json.loads((out / "verdict.json").read_text())["differences"][0]["allowed"] is True


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        ({"device_class": "cpu"}, {"device_class": "cuda"}, "device_class cpu and cuda"),
        ({"version": "0.32.0"}, {"version": "0.33.0"}, "version 0.32.0 and 0.33.0"),
        ({"engine": "vllm"}, {"engine": "transformers"}, "engine vllm and transformers"),
        ({"dtype": "bfloat16"}, {"dtype": "float16"}, "dtype bfloat16 and float16"),
        ({"flags": ["--kv-cache-dtype", "auto"]}, {"flags": ["--kv-cache-dtype", "fp8"]}, "kv_cache_dtype auto"),
        # A checkpoint that brings its own type of cache is measured with it: that loss is the candidate's.
        (
            {"flags": ["--kv-cache-dtype", "auto"], "kv_cache_dtype": "auto"},
            {"flags": ["--kv-cache-dtype", "auto"], "kv_cache_dtype": "fp8_e4m3"},
            "",
        ),
        ({"device": "one CPU"}, {"device": "another CPU"}, ""),
    ],
)
def test_sides_measured_under_other_conditions_are_not_compared(
    inputs: Inputs, tmp_path: Path, left: dict[str, Any], right: dict[str, Any], told: str
) -> None:
    for side, facts in (("baseline", left), ("evaluate", right)):
        records(inputs.folders[side], [1.0] * 400)
        summary = {"engine": {"engine": "vllm", **facts}, "candidate_digest": "d" * 64}
        write_json(inputs.folders[side] / "result.json", {"summary": summary})
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}})
    if told:
        with pytest.raises(InfrastructureError, match=told):
            gate.run(spec, inputs, out_of(tmp_path))
    else:
        assert gate.run(spec, inputs, out_of(tmp_path)).summary["outcome"] == "PASS"


@pytest.mark.parametrize(
    ("candidate", "outcome"),
    [([1.0] * 400, "PASS"), ([0.0] * 100 + [1.0] * 300, "REGRESSED"), ([0.0] * 4 + [1.0] * 396, "INCONCLUSIVE")],
)
def test_gate_judges_and_stops_what_it_must(inputs: Inputs, tmp_path: Path, candidate: Any, outcome: str) -> None:
    """The real gate, on records made up."""
    records(inputs.folders["baseline"], [1.0] * 400)
    records(inputs.folders["evaluate"], candidate)
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}})
    out = out_of(tmp_path)
    summary = gate.run(spec, inputs, out).summary
    verdict = json.loads((out / "verdict.json").read_text())
    assert summary["outcome"] == verdict["outcome"] == outcome
    assert verdict["bindings"]["candidate_digest"] == "d" * 64
    assert "start_seconds" not in verdict["bindings"]["engine"], "it differs from run to run and measures nothing"
    assert summary["deciding"][0].startswith("t.exact_match: 100.00 % -> ")
    if outcome == "PASS":
        gate.check(spec, summary)
        return
    with pytest.raises(RegressedError if outcome == "REGRESSED" else InconclusiveError) as caught:
        gate.check(spec, summary)
    assert "margin 2.00 points" in str(caught.value)
    allowed = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}, "inconclusive": "allow"})
    if outcome == "INCONCLUSIVE":
        gate.check(allowed, summary)
    else:
        with pytest.raises(RegressedError):
            gate.check(allowed, summary)


def test_an_engine_that_disagrees_with_itself_is_never_allowed(inputs: Inputs, tmp_path: Path) -> None:
    """A candidate that lost every item is not released because the engine wavers as well."""
    control = tmp_path / "run" / "control"
    inputs.folders["control"] = control
    records(inputs.folders["baseline"], [0.0] * 40 + [1.0] * 360)
    records(control, [0.0] * 34 + [1.0] * 12 + [0.0] * 6 + [1.0] * 348)
    path = control / "records" / "t.jsonl"
    path.write_text(path.read_text().replace("said", "says"))
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}, "inconclusive": "allow"})
    out = out_of(tmp_path)
    for candidate in ([0.0] * 400, [0.0] * 40 + [1.0] * 360):
        records(inputs.folders["evaluate"], candidate)
        summary = gate.run(spec, inputs, out).summary
        assert (summary["outcome"], summary["accepted"], summary["exit_code"]) == ("INCONCLUSIVE", False, 3)
        with pytest.raises(InconclusiveError, match="does not agree with itself"):
            gate.check(spec, summary)


def test_gate_preflight_knows_the_tasks(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "evals/tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: other\nitems: t.jsonl\nscorer: exact_match\n")
    with pytest.raises(UsageError) as caught:
        gate.preflight(GateSpec.model_validate({"metrics": {"othr.exact_match": 0.02}}), inputs)
    assert caught.value.remedy == "did you mean 'other'?"
    spec = GateSpec.model_validate({"metrics": {"other.exact_match": 0.02}})
    with pytest.raises(DataError, match="no such file"):
        gate.preflight(spec, inputs)
    text_items(tmp_path / "t.jsonl", 5)
    assert gate.preflight(spec, inputs).details["gate"]["metrics"][0]["items"] == 5


def text_items(path: Path, n: int) -> None:
    message = {"role": "user", "content": "?"}
    rows = [{"id": f"i{k}", "kind": "k", "messages": [message], "expected": {"text": "x"}} for k in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tool_items(path: Path, called: int, abstained: int) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    rows = [
        {
            "id": f"i{k}",
            "messages": [{"role": "user", "content": "?"}],
            "tools": [tool] if k % 2 else [tool, {"type": "function", "function": {"name": "g"}}],
            "expected": {"calls": [{"name": "f"}] if k < called else []},
        }
        for k in range(called + abstained)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_gate_plans_the_items_that_each_metric_applies_to(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "evals/tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: t\nitems: t.jsonl\nscorer: tool_calls\n")
    tool_items(tmp_path / "t.jsonl", 300, 100)
    metrics = {"t.schema_valid": 0.02, "t.call_match": {"relative": 0.02}, "t.later": 0.01}
    spec = GateSpec.model_validate({"metrics": metrics, "slices": ["n_tools"]})

    def planned(limit: int | None) -> dict[str, Any]:
        sections = {**inputs.sections, "evaluate": EvaluateSpec(tasks=("t",), drift=None, limit=limit)}
        estimate = gate.preflight(spec, Inputs(**{**vars(inputs), "sections": sections}))
        assert estimate.details["gate"]["warnings"] == list(estimate.warnings)
        return dict(estimate.details["gate"])

    assert [(m["items"], m["counted"]) for m in planned(None)["metrics"]] == [
        (300, "items"),
        (400, "items"),
        (400, "at_most"),
    ]
    assert [(part["value"], part["items"]) for part in planned(None)["slices"]][:2] == [("1", 150), ("2", 150)]
    few = planned(100)
    assert [m["items"] for m in few["metrics"]] == [75, 100, 100]
    assert "t.schema_valid has 75 items, and a margin of 2 points needs at least 149" in few["warnings"][0]


def test_the_gate_plans_on_the_baselines_records_where_there_are_any(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "evals/tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: t\nitems: t.jsonl\nscorer: exact_match\n")
    text_items(tmp_path / "t.jsonl", 5)
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": {"relative": 0.1}}})
    records(inputs.folders["baseline"], [0.0] * 200 + [1.0] * 200)
    (metric,) = gate.preflight(spec, inputs).details["gate"]["metrics"]
    assert (metric["items"], metric["counted"], metric["margin"]) == (400, "baseline", 0.05)
    assert gate.details(spec, inputs)["gate"]["metrics"] == [metric]
    (inputs.folders["baseline"] / "result.json").unlink()
    (metric,) = gate.preflight(spec, inputs).details["gate"]["metrics"]
    assert (metric["items"], metric["margin"]) == (5, None), "an unfinished baseline counts for nothing"
    records(inputs.folders["baseline"], [0.0] * 400)
    with pytest.raises(DataError, match="relative margin"):
        gate.preflight(spec, inputs)
