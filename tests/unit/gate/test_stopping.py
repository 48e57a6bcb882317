"""Verdicts on evaluations that ended early, and what may not pass for one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import DataError
from sqtool.gate.explain import explain
from sqtool.gate.judge import judge
from sqtool.gate.records import load
from sqtool.gate.spec import GateSpec
from sqtool.gate.stopping import Watch, asked_order
from sqtool.gate.verdict import Verdict

Write = Callable[..., Path]
N = 600


def gate(**more: Any) -> GateSpec:
    return GateSpec.model_validate({"metrics": {"recall.m": 0.02}, **more})


def asked(folder: Path, task: str = "recall") -> list[str]:
    records = load(folder / f"{task}.jsonl")
    return [records.ids[at] for at in asked_order(records)]


def rows(folder: Path, task: str = "recall") -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in map(json.loads, (folder / f"{task}.jsonl").read_text().splitlines())}


def cut(folder: Path, ids: Sequence[str], task: str = "recall") -> Path:
    """Leave only these items in the folder's records."""
    kept = rows(folder, task)
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(kept[name]) + "\n" for name in sorted(ids)))
    return folder


def watched(spec: GateSpec, baseline: Path, candidate: Path, task: str = "recall") -> tuple[str, int, Watch]:
    """(decision, items asked) as the evaluation would come to it."""
    watch = Watch(spec, baseline)
    whole = rows(candidate, task)
    ids = sorted(whole)
    places = watch.order(task, ids)
    for end in range(watch.every, len(ids), watch.every):
        new = [whole[ids[place]] for place in places[end - watch.every : end]]
        decision = watch.look(task, new)
        if decision != "go_on":
            return decision, end, watch
    return "go_on", len(ids), watch


def scores(share: float, seed: int = 0, n: int = N) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() >= share) for _ in range(n)]


def test_a_clear_regression_ends_it_and_the_gate_agrees(write_records: Write) -> None:
    left, right = write_records("a", {"m": [1.0] * N}), write_records("b", {"m": scores(0.4)})
    decision, count, watch = watched(gate(), left, right)
    assert (decision, watch.why["metric"], watch.why["of"]) == ("all", "recall.m", N)
    assert count <= 96
    verdict = judge(gate(), left, cut(right, asked(left)[:count]))
    metric = verdict.metric("recall.m")
    assert (verdict.outcome, metric.reason, metric.items, metric.declared) == (
        "REGRESSED",
        "drop_exceeds_margin",
        count,
        N,
    )
    assert metric.upper < -0.02
    assert metric.interval == metric.test == "betting_sequence"
    assert [(s.task, s.items, s.of) for s in verdict.stopped] == [("recall", count, N)]
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert f"ended early: {count} of {N} items of recall" in explain(verdict)


def test_no_change_and_a_small_drop_end_nothing(write_records: Write) -> None:
    left = write_records("a", {"m": [1.0] * N})
    for share in (0.0, 0.02, 0.03):
        assert watched(gate(), left, write_records("b", {"m": scores(share, 5)}))[0] == "go_on"
    assert watched(gate(early_stop="off"), left, write_records("b", {"m": scores(0.5)}))[0] == "go_on"


@pytest.mark.parametrize("case", ["too short", "not the first ones", "nothing regressed", "not allowed"])
def test_records_that_are_merely_incomplete_are_an_error(write_records: Write, case: str) -> None:
    share = 0.0 if case == "nothing regressed" else 0.4
    left, right = write_records("a", {"m": [1.0] * N}), write_records("b", {"m": scores(share)})
    first = asked(left)
    ids = {"too short": first[:3], "not the first ones": first[32:160]}.get(case, first[:128])
    spec = gate(early_stop="off") if case == "not allowed" else gate()
    cut(right, ids)
    with pytest.raises(DataError, match=r"justifies having stopped there|are missing on the candidate's side"):
        judge(spec, left, right)


def test_wider_margins_may_not_be_put_on_a_short_evaluation(write_records: Write) -> None:
    left, right = write_records("a", {"m": [1.0] * N}), write_records("b", {"m": scores(0.2)})
    _, count, _ = watched(gate(), left, right)
    cut(right, asked(left)[:count])
    assert judge(gate(), left, right).outcome == "REGRESSED"
    with pytest.raises(DataError, match="nothing among them justifies"):
        judge(gate(metrics={"recall.m": 0.3}), left, right)


def test_tasks_that_were_never_begun(write_records: Write) -> None:
    spec = gate(metrics={"recall.m": 0.02, "tasks.m": 0.02})
    left = write_records("a", {"m": [1.0] * N})
    write_records("a", {"m": [1.0] * N}, task="tasks")
    right = write_records("b", {"m": scores(0.4)})
    _, count, _ = watched(spec, left, right)
    cut(right, asked(left)[:count])
    verdict = judge(spec, left, right)
    assert (verdict.outcome, verdict.not_measured, verdict.tests_in_family) == ("REGRESSED", ("tasks.m",), 2)
    assert "tasks.m: not measured" in explain(verdict)
    with pytest.raises(DataError, match=r"no items for tasks\.m"):
        judge(spec, left, write_records("c", {"m": scores(0.0)}))
    with pytest.raises(DataError, match="no records of task 'tasks'"):
        judge(spec.model_copy(update={"early_stop": "off"}), left, right)


def test_both_ends_a_task_that_has_passed(write_records: Write) -> None:
    spec = gate(metrics={"recall.m": 0.05}, early_stop="both")
    left, right = write_records("a", {"m": [1.0] * N}), write_records("b", {"m": [1.0] * N})
    decision, count, _ = watched(spec, left, right)
    assert decision == "task"
    assert count < N
    cut(right, asked(left)[:count])
    verdict = judge(spec, left, right)
    metric = verdict.metric("recall.m")
    assert (verdict.outcome, metric.interval) == ("PASS", "betting_sequence")
    assert metric.lower > -0.05
    assert metric.pass_p_value is not None
    assert metric.pass_p_value <= 0.05
    with pytest.raises(DataError, match="nothing among them justifies"):
        judge(gate(metrics={"recall.m": 0.05}), left, right)  # `regressed` lets nobody stop for a PASS


def test_both_never_falls_back_to_the_fixed_interval(write_records: Write) -> None:
    """One flip of 300 passes the fixed interval at two points; the sequence wants more items, and it decides."""
    left, right = write_records("a", {"m": [1.0] * 300}), write_records("b", {"m": [1.0] * 299 + [0.0]})
    assert judge(gate(), left, right).outcome == "PASS"
    verdict = judge(gate(early_stop="both"), left, right)
    metric = verdict.metric("recall.m")
    if verdict.outcome == "PASS":
        assert metric.pass_p_value is not None
        assert metric.pass_p_value <= 0.05
    else:
        assert metric.reason == "sequence_reaches_margin"
    assert metric.interval == "betting_sequence"


def test_both_asks_everything_where_there_are_slices(write_records: Write) -> None:
    spec = gate(metrics={"recall.m": 0.05}, early_stop="both", slices=["kind"])
    left, right = write_records("a", {"m": [1.0] * N}), write_records("b", {"m": [1.0] * N})
    assert watched(spec, left, right)[0] == "go_on"


def test_clusters_are_never_cut(write_records: Write) -> None:
    clusters = [f"c{i // 7}" for i in range(N)]
    left = write_records("a", {"m": [1.0] * N}, clusters=clusters)
    right = write_records("b", {"m": [float(i // 7 % 2) for i in range(N)]}, clusters=clusters)
    first = asked(left)
    cut(right, first[:100])  # in the middle of a cluster
    with pytest.raises(DataError, match="missing on the candidate's side"):
        judge(gate(), left, right)


def test_the_refusals_of_an_unchanged_candidate_stay_rare(write_records: Write) -> None:
    """Watched to the end or stopped, 60 unchanged candidates that flip 10 % of their answers: none is refused early."""
    left = write_records("a", {"m": scores(0.5, 1, 256)})
    base = scores(0.5, 1, 256)
    for seed in range(60):
        rng = random.Random(seed)
        noisy = [1.0 - x if rng.random() < 0.1 else x for x in base]
        assert watched(gate(), left, write_records("b", {"m": noisy}))[0] == "go_on"


def test_the_baseline_was_asked_other_items(write_records: Write) -> None:
    watch = Watch(gate(), write_records("a", {"m": [1.0] * 10}))
    with pytest.raises(DataError, match="other items"):
        watch.order("recall", ["x"])
    assert watch.order("unknown", ["x", "y"]) == [0, 1]


def lengths(low: int, high: int, allowed: int = 4096) -> list[float]:
    """Lengths of answers as shares of `max_tokens`."""
    rng = random.Random(low)
    return [rng.randint(low, high) / allowed for _ in range(N)]


@pytest.mark.parametrize("allowed", [64, 4096])
@pytest.mark.parametrize("kept", [0.5, 0.85, 0.95, 1.0, 1.5])
def test_lengths_are_never_stopped_for_what_the_last_item_would_not_say(
    write_records: Write, kept: float, allowed: int
) -> None:
    """The sequence looks at shares of `max_tokens`, the verdict at shares of the longest answer: a drop past the margin
    on the first scale is one on the second."""
    spec = GateSpec.model_validate({"metrics": {"recall.gen_len": 0.1}})
    long = lengths(30, 60, allowed)
    left = write_records("a", {"gen_len": long})
    right = write_records("b", {"gen_len": [min(1.0, one * kept) for one in long]})
    whole = judge(spec, left, right)
    decision, _, _ = watched(spec, left, right)
    longest = max(60 / allowed, max(min(1.0, one * kept) for one in long))
    drop = sum(one - min(1.0, one * kept) for one in long) / N / longest
    assert whole.metric("recall.gen_len").difference == pytest.approx(-drop)
    assert whole.outcome != "PASS" or drop < 0.1
    assert whole.outcome != "REGRESSED" or drop >= 0.1
    assert decision != "task"
    assert decision == "go_on" or whole.outcome == "REGRESSED"


def test_a_cut_off_metric_of_lengths_has_an_interval_on_the_scale_of_its_difference(write_records: Write) -> None:
    spec = GateSpec.model_validate({"metrics": {"recall.m": 0.02, "recall.gen_len": {"relative": 0.1}}})
    long = lengths(30, 60)
    left = write_records("a", {"m": [1.0] * N, "gen_len": long})
    right = write_records("b", {"m": [0.0] * N, "gen_len": [one / 2 for one in long]})
    decision, items, _ = watched(spec, left, right)
    assert decision == "all"
    metric = judge(spec, left, cut(right, asked(left)[:items])).metric("recall.gen_len")
    assert (metric.interval, metric.outcome) == ("betting_sequence", "INCONCLUSIVE")
    assert metric.difference == pytest.approx(-0.37, abs=0.05)
    # On some hundred items a sequence over the whole range is wide; an interval in other units was a hundredth of that.
    assert -1.0 <= metric.lower < metric.difference - 0.1
    assert metric.difference + 0.1 < metric.upper <= 1.0
