"""Speculation through the gate: real verdicts on small records."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import DataError, RegressedError, UsageError
from sqtool.gate.spec import GateSpec
from sqtool.speculate.spec import RulesSpec, SpeculateSpec
from sqtool.stages import approve
from sqtool.stages.speculation import SPECULATION_VERDICT, Sides, judge_speculation
from tests.unit.advise.reports import gate, report

ITEMS = 400
GATE = GateSpec.model_validate({"metrics": {"recall.exact_match": 0.02}})
ALLOW = GATE.model_copy(update={"inconclusive": "allow"})
ENGINE = {"engine": "vllm", "version": "0.32.0", "device_class": "cpu", "dtype": "bf16", "kv_cache_dtype": "auto"}


def records(folder: Path, wrong: int = 0, *, items: Collection[int] = range(ITEMS), task: str = "recall") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "task": task,
            "id": f"{task}-{n:04d}",
            "kind": "k",
            "scores": {"exact_match": float(n >= wrong)},
            "output": {"text": "right" if n >= wrong else "wrong"},
        }
        for n in items
    ]
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(records(tmp_path / "baseline"), records(tmp_path / "quantized", 4), records(tmp_path / "control"))


def stage(tmp_path: Path, wrong: Mapping[str, int], **changes: Any) -> Path:
    folder = tmp_path / "speculate"
    for arm, number in wrong.items():
        records(folder / "arms" / arm / "quality" / "records", number, **changes)
    return folder


def test_the_same_answers_are_approved(tmp_path: Path, sides: Sides) -> None:
    folder = stage(tmp_path, {"speculative": 0, "both": 4})
    result = judge_speculation(folder, report(), GATE, sides)
    assert (result["schema"], result["approved"], result["gate"]) == ("sqtool.speculation/1", True, "report")
    assert set(result["pairs"]) == {"speculative/baseline", "both/quantized"}
    assert {pair["outcome"] for pair in result["pairs"].values()} == {"PASS"}
    assert result["pairs"]["speculative/baseline"]["control"]["deterministic"]
    assert result["pairs"]["both/quantized"]["control"] is None, "the control is the baseline's"
    assert result["reasons"] == []
    assert json.loads((folder / SPECULATION_VERDICT).read_text()) == result


def test_both_is_held_to_quantized_and_not_to_the_baseline(tmp_path: Path) -> None:
    sides = Sides(records(tmp_path / "b"), records(tmp_path / "q", 200))
    result = judge_speculation(stage(tmp_path, {"speculative": 0, "both": 200}), report(), GATE, sides)
    assert result["approved"]


def test_worse_answers_are_not_approved_and_say_which(tmp_path: Path, sides: Sides) -> None:
    result = judge_speculation(stage(tmp_path, {"speculative": 0, "both": 80}), report(), GATE, sides)
    assert not result["approved"]
    (reason,) = result["reasons"]
    assert reason.startswith("both: REGRESSED against quantized: recall.exact_match: 99.00 % -> 80.00 %, dropped 19.00")
    assert result["arms"] == {
        "speculative": {"approved": True, "reasons": []},
        "both": {"approved": False, "reasons": [reason.removeprefix("both: ")]},
    }
    assert not any(load["deploy"] in ("both", "speculative") for load in result["advice"]["loads"])


def test_too_few_items_are_no_approval(tmp_path: Path) -> None:
    few = range(40)
    sides = Sides(records(tmp_path / "b", items=few), records(tmp_path / "q", items=few))
    folder = stage(tmp_path, {"speculative": 0, "both": 0}, items=few)
    result = judge_speculation(folder, report(), GATE, sides)
    assert not result["approved"]
    assert all("INCONCLUSIVE" in reason for reason in result["reasons"])
    assert judge_speculation(folder, report(), ALLOW, sides)["reasons"] == result["reasons"], "that is the candidate's"


def test_what_a_recipe_allows_the_candidate_it_does_not_allow_speculation(tmp_path: Path) -> None:
    """A drop of 10 points on 30 items, margin 2: visible, and no pair decides it."""
    few = range(30)
    sides = Sides(records(tmp_path / "b", items=few), records(tmp_path / "q", items=few))
    folder = stage(tmp_path, {"speculative": 3, "both": 3}, items=few)
    result = judge_speculation(folder, report(), ALLOW, sides)
    assert {pair["outcome"] for pair in result["pairs"].values()} == {"INCONCLUSIVE"}
    assert not result["approved"]
    assert result["arms"]["both"]["approved"] is False
    left, right = result["reasons"]
    assert left.startswith("speculative: INCONCLUSIVE against baseline: recall.exact_match: 100.00 % -> 90.00 %")
    assert right.startswith("both: INCONCLUSIVE against quantized: recall.exact_match: 100.00 % -> 90.00 %")
    assert not any(load["deploy"] in ("both", "speculative") for load in result["advice"]["loads"])


def test_an_engine_that_disagrees_with_itself_approves_nothing(tmp_path: Path, sides: Sides) -> None:
    unsteady = Sides(sides.baseline, sides.quantized, records(tmp_path / "again", 60))
    folder = stage(tmp_path, {"speculative": 0, "both": 4})
    (reason,) = judge_speculation(folder, report(), ALLOW, unsteady)["reasons"]
    assert reason.startswith("speculative: INCONCLUSIVE against baseline: recall.exact_match: the baseline disagrees")
    assert reason.endswith("unstable_engine")


def test_an_item_that_is_missing_is_an_error_unless_the_recipe_wants_few(tmp_path: Path, sides: Sides) -> None:
    folder = stage(tmp_path, {"speculative": 0, "both": 0}, items=range(300))
    with pytest.raises(DataError, match="recall"):
        judge_speculation(folder, report(), GATE, sides)
    result = judge_speculation(folder, report(), GATE, sides, some_items=True)
    assert result["pairs"]["both/quantized"]["metrics"][0]["items"] == 300


def test_a_candidate_whose_evaluation_ended_early(tmp_path: Path) -> None:
    sides = Sides(records(tmp_path / "b"), records(tmp_path / "q", items=range(100, 400)))
    folder = stage(tmp_path, {"speculative": 0, "both": 0})
    result = judge_speculation(folder, report(), GATE, sides, ended_early=["recall"])
    assert result["pairs"]["both/quantized"]["metrics"][0]["items"] == 300
    assert result["pairs"]["speculative/baseline"]["metrics"][0]["items"] == 400


def test_what_was_not_answered_is_not_approved(tmp_path: Path, sides: Sides) -> None:
    result = judge_speculation(stage(tmp_path, {"speculative": 0}), report(), GATE, sides)
    assert result["reasons"] == ["both: it answered no tasks, so its quality was not judged"]
    more = GateSpec.model_validate({"metrics": {"recall.exact_match": 0.02, "tasks.exact_match": 0.02}})
    result = judge_speculation(stage(tmp_path, {"both": 4}), report(), more, sides)
    assert "both: not answered, so not judged: tasks.exact_match" in result["reasons"]
    other = GateSpec.model_validate({"metrics": {"tasks.exact_match": 0.02}})
    result = judge_speculation(folder := tmp_path / "speculate", report(), other, sides)
    assert "both: it answered none of the gated tasks (tasks.exact_match)" in result["reasons"]
    assert folder.is_dir()


def test_without_the_arm_both_nothing_is_approved(tmp_path: Path, sides: Sides) -> None:
    value = report()
    del value["arms"]["both"]
    result = judge_speculation(stage(tmp_path, {"speculative": 0}), value, GATE, sides)
    assert result["reasons"] == [
        "no arm `both` was measured, so speculation with the quantized checkpoint is not judged"
    ]


def test_arms_beside_the_four_are_judged_for_themselves(tmp_path: Path, sides: Sides) -> None:
    value = report()
    value["arms"]["both_k2"] = value["arms"]["both"]
    folder = stage(tmp_path, {"speculative": 0, "both": 4, "both_k2": 100})
    result = judge_speculation(folder, value, GATE, sides)
    assert result["approved"], "a further arm does not spoil the four"
    assert result["arms"]["both_k2"]["approved"] is False
    assert "both_k2/quantized" in result["pairs"]


def test_other_conditions_are_not_approved(tmp_path: Path, sides: Sides) -> None:
    value = report()
    for arm in value["arms"].values():
        arm["engine"] = ENGINE
    value["arms"]["both"]["engine"] = {**ENGINE, "dtype": "fp16"}
    held = Sides(sides.baseline, sides.quantized, None, {"baseline": ENGINE, "quantized": ENGINE})
    result = judge_speculation(stage(tmp_path, {"speculative": 0, "both": 4}), value, GATE, held)
    assert result["reasons"] == ["both: answered under other conditions than quantized: dtype fp16 and bf16"]


@pytest.mark.parametrize(
    ("measure", "gain", "rules", "said"),
    [
        (
            "e2e_p99",
            {"gain": 0.8, "ci": [0.75, 0.85]},
            {"max_p99_ratio": 1.1},
            "speculate.rules.max_p99_ratio at c16 is not kept: 1.25 [1.18, 1.33], the limit is 1.1",
        ),
        (
            "e2e_p99",
            {"gain": 1.0, "ci": [0.8, 1.25]},
            {"max_p99_ratio": 1.1},
            "speculate.rules.max_p99_ratio at c16 is not shown to be kept: 1 [0.8, 1.25], the limit is 1.1",
        ),
        (
            "e2e_p99",
            {"gain": 1.0, "ci": None},
            {"max_p99_ratio": 1.1},
            (
                "speculate.rules.max_p99_ratio at c16 is not shown to be kept: 1, the limit is 1.1: an interval of p99 "
                "needs 368 distinct requests"
            ),
        ),
        (
            "cost_per_accepted_answer",
            None,
            {"max_cost_ratio": 1.0},
            "speculate.rules.max_cost_ratio at c16 is not shown to be kept: the measure is missing; `missing` says why",
        ),
    ],
)
def test_the_recipes_rules_count(
    tmp_path: Path, sides: Sides, measure: str, gain: dict[str, Any] | None, rules: dict[str, float], said: str
) -> None:
    folder = stage(tmp_path, {"speculative": 0, "both": 4})
    value = report()
    over = {} if gain is None else {"both": {"against": "quantized", **gain}}
    value["interaction"]["c16"][measure] = {"over_plain": over}
    limits = RulesSpec.model_validate({"max_acceptance_drop": 0.1, **rules})
    result = judge_speculation(folder, value, GATE, sides, rules=limits)
    assert result["reasons"] == [said]
    assert [(rule["rule"], rule["ok"]) for rule in result["rules"]] == [
        ("max_acceptance_drop", True), (*rules, False)
    ]  # fmt: skip
    assert not any(load["deploy"] in ("both", "speculative") for load in result["advice"]["loads"])
    assert judge_speculation(folder, value, GATE, sides)["approved"], "without rules"


def test_a_p99_of_which_the_slowest_timed_out_is_not_kept(tmp_path: Path, sides: Sides) -> None:
    value = report()
    faster = {"against": "quantized", "gain": 2.0, "ci": [1.6, 2.5]}
    value["interaction"]["c16"]["e2e_p99"] = {"over_plain": {"both": faster}}
    value["arms"]["both"]["loads"]["c16"] |= {"requests": 400, "failures": {"count": 25, "examples": []}}
    folder = stage(tmp_path, {"speculative": 0, "both": 4})
    result = judge_speculation(folder, value, GATE, sides, rules=RulesSpec(max_p99_ratio=1.1))
    (reason,) = result["reasons"]
    assert reason == (
        "speculate.rules.max_p99_ratio at c16 is not shown to be kept: 0.5 [0.4, 0.625], the limit is 1.1: 25 of 400 "
        "requests failed"
    )


def test_a_bad_record_and_another_schema_are_named(tmp_path: Path, sides: Sides) -> None:
    folder = stage(tmp_path, {"speculative": 0, "both": 0})
    path = folder / "arms/both/quality/records/recall.jsonl"
    path.write_text(path.read_text() + "[]\n")
    with pytest.raises(DataError, match=r"recall\.jsonl:401: id: "):
        judge_speculation(folder, report(), GATE, sides)
    with pytest.raises(UsageError, match="has schema"):
        judge_speculation(folder, {"schema": "old"}, GATE, sides)


def test_block_is_exit_1_and_report_is_not() -> None:
    summary = {"approved": False, "reasons": ["both: REGRESSED"]}
    approve.check(SpeculateSpec(), summary)
    spec = SpeculateSpec(gate="block")
    approve.check(spec, {**summary, "approved": True})
    with pytest.raises(RegressedError, match="speculation is not approved: both: REGRESSED") as caught:
        approve.check(spec, summary)
    assert caught.value.exit_code == 1
    assert "speculate: {gate: report}" in caught.value.remedy


def test_an_arm_that_was_measured_for_its_speed_alone_is_left_out(tmp_path: Path, sides: Sides) -> None:
    value = report()
    value["arms"]["both_k2"] = value["arms"]["both"]
    folder = stage(tmp_path, {"speculative": 0, "both": 4})
    result = judge_speculation(folder, value, GATE, sides, verdict=gate())
    assert set(result["arms"]) == {"speculative", "both"}
    reasons = {arm["arm"]: arm["reason"] for arm in result["advice"]["arms"]}
    assert reasons["both_k2"] == "its answers to the tasks were not judged"


def drawn(p_value: float, control: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"both/quantized": {"p_value": p_value / 2, "p_holm": p_value, "furthest": ["a", "b"]}}
    return found if control is None else {**found, "baseline_again/baseline": {"p_value": control}}


def test_sampled_answers_of_another_distribution_are_not_approved(tmp_path: Path, sides: Sides) -> None:
    folder = stage(tmp_path, {"speculative": 0, "both": 4})
    result = judge_speculation(folder, {**report(), "sampling": drawn(0.0004, 0.57)}, GATE, sides)
    (reason,) = result["reasons"]
    assert reason == (
        "both: sampled answers do not have the distribution of those of quantized (p = 0.0004 adjusted, 0.57 for the "
        "A/A arm), such as a, b"
    )
    assert result["pairs"]["both/quantized"]["outcome"] == "PASS", "greedy answers say nothing of it"
    for value in (drawn(0.03, 0.57), drawn(0.0004, 0.001)):
        assert judge_speculation(folder, {**report(), "sampling": value}, GATE, sides)["approved"]
    assert not judge_speculation(folder, {**report(), "sampling": drawn(0.0004, None)}, GATE, sides)["approved"]
