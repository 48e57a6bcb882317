"""The rules of the verdict, its file, and what it says in words."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqtool.errors import DataError
from sqtool.gate.explain import explain
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from sqtool.gate.verdict import Verdict

Write = Callable[..., Path]
GATE = GateSpec.for_metrics(["recall.m"])


def judged(write: Write, gains: int, losses: int, n: int, spec: GateSpec = GATE) -> Verdict:
    baseline = [0.0] * gains + [1.0] * (n - gains)
    candidate = [1.0] * (n - losses) + [0.0] * losses
    return judge(spec, write("a", {"m": baseline}), write("b", {"m": candidate}))


@pytest.mark.parametrize(
    ("gains", "losses", "n", "outcome", "reason", "code"),
    [
        (0, 0, 149, "PASS", "drop_beyond_margin_excluded", 0),
        (0, 0, 148, "INCONCLUSIVE", "exact_test_reaches_margin", 3),  # 0.98^148 is above 5 %
        (0, 0, 132, "INCONCLUSIVE", "interval_reaches_margin", 3),
        (0, 40, 500, "REGRESSED", "drop_exceeds_margin", 1),
        (2, 13, 500, "REGRESSED", "drop_shown", 1),
        (2, 11, 500, "INCONCLUSIVE", "interval_reaches_margin", 3),  # shown, but the estimate is above the margin
        (12, 22, 500, "INCONCLUSIVE", "interval_reaches_margin", 3),  # at the margin, but not shown
        (0, 10, 500, "REGRESSED", "drop_shown", 1),  # exactly at the margin
        (60, 20, 500, "PASS", "drop_beyond_margin_excluded", 0),
    ],
)
def test_rules(write_records: Write, gains: int, losses: int, n: int, outcome: str, reason: str, code: int) -> None:
    verdict = judged(write_records, gains, losses, n)
    metric = verdict.metric("recall.m")
    assert (verdict.outcome, metric.outcome, metric.reason, verdict.exit_code) == (outcome, outcome, reason, code)
    assert (metric.improved, metric.worsened, metric.items) == (gains, losses, n)
    assert metric.difference == pytest.approx((gains - losses) / n)


def test_items_to_decide(write_records: Write) -> None:
    assert judged(write_records, 0, 0, 100).metric("recall.m").items_to_decide == 149
    assert judged(write_records, 0, 0, 140).metric("recall.m").items_to_decide == 149
    metric = judged(write_records, 2, 8, 400).metric("recall.m")
    needed = metric.items_to_decide
    assert needed is not None
    assert metric.items_for_power is not None
    assert metric.items_for_power > needed > 400
    factor = needed / 400
    again = judged(write_records, round(2 * factor), round(8 * factor), needed + 400)
    assert again.outcome == "PASS"


def test_all_gated_metrics_must_pass(write_records: Write) -> None:
    spec = GateSpec.model_validate({"metrics": {"recall.m": 0.02, "recall.k": 0.02, "recall.d": "diagnostic"}})
    same, short = [1.0] * 200, [1.0] * 100 + [None] * 100
    ruined = [0.0] * 200
    left = write_records("a", {"m": same, "k": short, "d": same, "extra": same})
    right = write_records("b", {"m": same, "k": short, "d": ruined, "extra": ruined})
    verdict = judge(spec, left, right)
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.reasons == ("recall.k: interval_reaches_margin",)
    assert [m.metric for m in verdict.metrics if not m.gated] == ["recall.d", "recall.extra"]
    assert verdict.metric("recall.extra").p_adjusted is None
    assert verdict.metric("recall.extra").outcome == "INCONCLUSIVE"  # a diagnostic metric never blocks
    assert verdict.tests_in_family == 2


def test_holm_over_the_family(write_records: Write) -> None:
    """Ten losses of ten flips at the margin: p = 0.001; among 60 tests that is no longer below alpha."""
    columns = {f"m{i}": [1.0] * 500 for i in range(60)}
    worse = dict(columns) | {"m0": [1.0] * 490 + [0.0] * 10}
    spec = GateSpec.for_metrics([f"recall.m{i}" for i in range(60)])
    verdict = judge(spec, write_records("a", columns), write_records("b", worse))
    metric = verdict.metric("recall.m0")
    assert metric.p_value == pytest.approx(2**-10)
    assert metric.p_adjusted == pytest.approx(60 * 2**-10)
    assert metric.outcome == "INCONCLUSIVE"


def test_inconclusive_allow(write_records: Write) -> None:
    spec = GateSpec.for_metrics(["recall.m"], inconclusive="allow")
    verdict = judged(write_records, 0, 0, 100, spec)
    assert (verdict.outcome, verdict.exit_code, verdict.accepted) == ("INCONCLUSIVE", 0, True)


def test_min_items_never_pass(write_records: Write) -> None:
    spec = GateSpec.for_metrics(["recall.m"], min_items=300)
    verdict = judged(write_records, 0, 0, 200, spec)
    metric = verdict.metric("recall.m")
    assert (metric.outcome, metric.reason, metric.items_to_decide) == ("INCONCLUSIVE", "too_few_items", 300)
    assert judged(write_records, 0, 200, 200, spec).outcome == "REGRESSED"


def test_direction_lower(write_records: Write) -> None:
    spec = GateSpec.model_validate({"metrics": {"recall.m": {"max_drop": 0.02, "direction": "lower"}}})
    rising = judge(spec, write_records("a", {"m": [0.0] * 300}), write_records("b", {"m": [0.0] * 250 + [1.0] * 50}))
    metric = rising.metric("recall.m")
    assert (metric.outcome, metric.worsened) == ("REGRESSED", 50)
    assert metric.difference == pytest.approx(-50 / 300)
    assert (metric.worst[0].baseline_score, metric.worst[0].candidate_score) == (0.0, 1.0)
    falling = judge(spec, write_records("a", {"m": [1.0] * 300}), write_records("b", {"m": [0.0] * 300}))
    assert falling.outcome == "PASS"


def test_relative_margin(write_records: Write) -> None:
    spec = GateSpec.model_validate({"metrics": {"recall.m": {"relative": 0.1}}})
    baseline = [1.0] * 500 + [0.0] * 500
    assert judge(spec, write_records("a", {"m": baseline}), write_records("b", {"m": baseline})).outcome == "PASS"
    worse = [1.0] * 400 + [0.0] * 600
    verdict = judge(spec, write_records("a", {"m": baseline}), write_records("b", {"m": worse}))
    metric = verdict.metric("recall.m")
    assert (verdict.outcome, metric.reason) == ("REGRESSED", "drop_exceeds_margin")
    assert metric.margin == pytest.approx(0.05)
    assert metric.lower < -0.1 < metric.upper < -0.05
    rare = [1.0] * 4 + [0.0] * 96
    left, right = write_records("a", {"m": rare}), write_records("b", {"m": rare})
    with pytest.raises(DataError, match=r"baseline mean of at least 0\.05"):
        judge(spec, left, right)


def test_missing_task_or_metric_fails(write_records: Write) -> None:
    left, right = write_records("a", {"m": [1.0]}), write_records("b", {"m": [1.0]})
    with pytest.raises(DataError, match="has no records of task 'recal'") as caught:
        judge(GateSpec.for_metrics(["recal.m", "recall.m"]), left, right)
    assert caught.value.remedy == "did you mean 'recall'?"
    with pytest.raises(DataError, match="no metric 'k'"):
        judge(GateSpec.for_metrics(["recall.k"]), left, right)


def test_a_diagnostic_metric_that_does_not_pair_is_a_note(write_records: Write) -> None:
    left = write_records("a", {"m": [1.0] * 150, "k": [1.0] * 150, "only": [1.0] * 150})
    right = write_records("b", {"m": [1.0] * 150, "k": [1.0] * 149 + [None]})
    verdict = judge(GATE, left, right)
    assert verdict.outcome == "PASS"
    assert [note.split(":")[0] for note in verdict.notes] == [
        "metric recall.only was scored on one side only and is not compared",
        "metric recall.k is not compared",
    ]


def test_slices(write_records: Write) -> None:
    spec = GateSpec.model_validate({"metrics": {"recall.m": 0.02}, "slices": ["kind", "n_tools"]})
    kinds = ["easy"] * 900 + ["hard"] * 100
    fields = [{"n_tools": i % 2} for i in range(1000)]
    fine = [1.0] * 1000
    broken = [1.0] * 985 + [0.0] * 15
    left = write_records("a", {"m": fine}, kinds=kinds, fields=fields)
    right = write_records("b", {"m": broken}, kinds=kinds, fields=fields)
    verdict = judge(spec, left, right)
    assert verdict.metric("recall.m").outcome == "INCONCLUSIVE"
    by_name = {part.name: part for part in verdict.slices}
    assert by_name["recall.m[kind=hard]"].outcome == "REGRESSED"
    assert by_name["recall.m[kind=easy]"].outcome == "PASS"
    assert {"recall.m[n_tools=0]", "recall.m[n_tools=1]"} < set(by_name)
    assert verdict.outcome == "REGRESSED"
    assert verdict.tests_in_family == 5
    same = judge(spec, left, write_records("c", {"m": fine}, kinds=kinds, fields=fields))
    hard = next(part for part in same.slices if part.slice_value == "hard")
    assert (same.outcome, hard.outcome, hard.items_to_decide) == ("PASS", "NOT_JUDGED", 149)
    assert "Not judged: recall.m[kind=hard] has 100 items and would need about 149 items." in explain(same)
    strict = GateSpec.model_validate({"metrics": {"recall.m": 0.02}, "slices": [{"field": "kind", "require": "pass"}]})
    assert judge(strict, left, write_records("c", {"m": fine}, kinds=kinds, fields=fields)).outcome == "INCONCLUSIVE"
    with pytest.raises(DataError, match="no item that is scored has it"):
        judge(GateSpec.model_validate({"metrics": {"recall.m": 0.02}, "slices": ["language"]}), left, right)


def test_worst_items_show_both_outputs(write_records: Write) -> None:
    verdict = judged(write_records, 0, 40, 500)
    worst = verdict.metric("recall.m").worst
    assert [item.id for item in worst] == [f"recall-{i:05d}" for i in range(460, 470)]
    assert worst[0].baseline_output["text"] == "a says 460"
    assert worst[0].candidate_output["text"] == "b says 460"
    assert worst[0].expected == {"text": "460"}
    assert judged(write_records, 5, 0, 500).metric("recall.m").worst == ()


def test_the_file_is_the_same_bytes_every_time(write_records: Write) -> None:
    rng = random.Random(0)
    scores = [rng.random() for _ in range(300)]
    other = [min(1.0, max(0.0, s + rng.gauss(0, 0.1))) for s in scores]
    clusters = [f"c{i // 4}" for i in range(300)]
    bindings = {"engine": "vllm", "flags": ["--x"], "device": "cpu"}

    def text(order: list[int] | None) -> Verdict:
        left = write_records("a", {"m": scores}, clusters=clusters, order=order)
        right = write_records("b", {"m": other}, clusters=clusters)
        return judge(GATE, left, right, bindings=bindings)

    first, second = text(None), text(None)
    assert first.to_json() == second.to_json()
    assert Verdict.from_json(first.to_json()) == first
    assert Verdict.from_json(first.to_json()).to_json() == first.to_json()
    assert json.loads(first.to_json())["schema"] == "sqtool.verdict/2"
    assert first.bindings == bindings
    order = list(range(300))
    rng.shuffle(order)
    shuffled = text(order)
    assert shuffled.metrics == first.metrics  # only the file's hash tells the difference
    assert shuffled.inputs["baseline"] != first.inputs["baseline"]


def test_the_file_holds_all_that_computing_it_again_takes(write_records: Write) -> None:
    spec = GateSpec.model_validate(
        {"metrics": {"recall.m": {"relative": 0.05}}, "slices": ["kind"], "alpha": 0.1, "inconclusive": "allow"}
    )
    left, right = write_records("a", {"m": [1.0] * 90 + [0.0] * 10}), write_records("b", {"m": [1.0] * 85 + [0.0] * 15})
    first = judge(spec, left, right, bindings={"engine": "vllm"})
    again = Verdict.from_json(first.to_json())
    second = judge(GateSpec.model_validate(again.spec), left, right, bindings=again.bindings)
    assert second.to_json() == first.to_json()


def test_moving_the_records_does_not_change_the_verdict(write_records: Write, tmp_path: Path) -> None:
    first = judged(write_records, 3, 5, 200)
    (tmp_path / "elsewhere").mkdir()
    for side in "ab":
        (tmp_path / side).rename(tmp_path / "elsewhere" / side)
    second = judge(GATE, tmp_path / "elsewhere/a/records", tmp_path / "elsewhere/b/records")
    assert first.to_json() == second.to_json()


def test_not_a_verdict() -> None:
    with pytest.raises(ValueError, match="validation error"):
        Verdict.from_json('{"outcome": "PASS"}')


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.005, 0.2), st.floats(0.005, 0.2))
def test_monotone_in_the_margin(write_records: Write, gains: int, losses: int, one: float, two: float) -> None:
    """A wider margin never turns PASS into less, and never turns anything into REGRESSED."""
    rank = {"REGRESSED": 0, "INCONCLUSIVE": 1, "PASS": 2}
    small, large = sorted((one, two))
    outcomes = [
        judged(write_records, gains, losses, 300, GateSpec.for_metrics(["recall.m"], max_drop=margin)).outcome
        for margin in (small, large)
    ]
    assert rank[outcomes[0]] <= rank[outcomes[1]]


@pytest.mark.parametrize("scores", [[0.0] * 200, [1.0] * 200, [0.5] * 200])
def test_one_class_metrics(write_records: Write, scores: list[float]) -> None:
    verdict = judge(GATE, write_records("a", {"m": scores}), write_records("b", {"m": scores}))
    assert verdict.outcome == "PASS"
    few = judge(GATE, write_records("a", {"m": scores[:50]}), write_records("b", {"m": scores[:50]}))
    assert few.outcome == "INCONCLUSIVE"


def test_explain(write_records: Write) -> None:
    passed = explain(judged(write_records, 1, 1, 400))
    assert passed.startswith("PASS")
    assert "The lower bound stays above the margin." in passed
    refused = explain(judged(write_records, 0, 40, 500))
    assert "100.00 -> 92.00 %, difference -8.00 points" in refused
    assert "40 of 500 items got worse and 0 better" in refused
    assert "the drop is larger than the margin" in refused
    shown = explain(judged(write_records, 2, 13, 500))
    assert "adjusted p = 0.0037" in shown
    unclear = explain(judged(write_records, 0, 0, 100))
    assert "Even a candidate without a single changed answer" in unclear
    assert "About 149 items" in unclear


def test_a_million_items_in_five_seconds(tmp_path: Path) -> None:
    """Reading, pairing and judging 10^6 items a side; processor time, as other work may share the machine."""
    good = [f'{{"id":"i{i:07d}","scores":{{"m":1}}}}' for i in range(10**6)]
    bad = [line.replace(":1}", ":0}") if i % 100 == 0 else line for i, line in enumerate(good)]
    for side, lines in (("a", good), ("b", bad)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "recall.jsonl").write_text("\n".join(lines))
    del good, bad, lines
    start = time.process_time()
    verdict = judge(GATE, tmp_path / "a", tmp_path / "b")
    assert time.process_time() - start < 5
    assert verdict.outcome == "PASS"
    assert verdict.metric("recall.m").worsened == 10_000
