"""The plan of a gate against `power`'s figures and against the verdict that it foretells."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqtool.errors import DataError
from sqtool.gate.judge import judge
from sqtool.gate.plan import PlannedTask, plan
from sqtool.gate.power import (
    items_needed,
    items_without_flips,
    joint,
    minimum_detectable_drop,
    plan_gate,
    power_to_pass,
)
from sqtool.gate.records import TaskRecords, load
from sqtool.gate.spec import GateSpec

Write = Callable[..., Path]


def stand_in(
    n: int,
    *,
    scores: Mapping[str, Sequence[float]] | None = None,
    kinds: Sequence[str | None] | None = None,
    fields: Sequence[dict[str, Any]] | None = None,
    clusters: Sequence[str | None] | None = None,
    measured: bool = False,
) -> PlannedTask:
    columns = {"m": [1.0] * n} if scores is None else scores
    records = TaskRecords(
        path=Path("t.jsonl"),
        sha256="",
        ids=[f"i{k:05d}" for k in range(n)],
        clusters=list(clusters or [None] * n),
        kinds=list(kinds or [None] * n),
        fields=list(fields or [{} for _ in range(n)]),
        scores={name: np.array(column, dtype=np.float64) for name, column in columns.items()},
    )
    return PlannedTask(records, measured)


def spec_of(metrics: Mapping[str, Any], **other: Any) -> GateSpec:
    return GateSpec.model_validate({"metrics": metrics, **other})


def test_the_figures_are_powers_at_each_metrics_own_items_and_margin() -> None:
    nan = float("nan")
    tasks = {"a": stand_in(600, scores={"m": [1.0] * 600, "some": [1.0] * 520 + [nan] * 80}), "b": stand_in(300)}
    found = plan(spec_of({"a.m": 0.02, "a.some": 0.01, "b.m": 0.05, "b.x": "diagnostic"}, alpha=0.1), tasks)
    assert [(m.metric, m.items, m.counted, m.margin, m.can_pass) for m in found.metrics] == [
        ("a.m", 600, "items", 0.02, True),
        ("a.some", 520, "items", 0.01, True),
        ("b.m", 300, "items", 0.05, True),
    ]
    assert found.harm_alpha == pytest.approx(0.08), "stopping early has a fifth of alpha"
    assert len(found.power.rows) == 3 * 3
    for row in found.power.rows:
        assert row.power_to_pass == power_to_pass(row.items, row.margin, row.discordance, alpha=0.1)
        drop = minimum_detectable_drop(row.items, row.margin, row.discordance, alpha=found.harm_alpha, family=3)
        assert row.detectable_drop == drop
        assert row.items_for_power == items_needed(row.margin, row.discordance, alpha=0.1)
    for discordance, both in found.power.all_pass.items():
        chances = [row.power_to_pass for row in found.power.rows if row.discordance == discordance]
        assert both == joint(chances)
    assert not found.warnings
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["power"]["power"] == 0.8


def test_stopping_early_costs_refusals_and_never_a_pass() -> None:
    off, regressed, both = (
        plan(spec_of({"a.m": 0.02}, early_stop=mode), {"a": stand_in(600)}) for mode in ("off", "regressed", "both")
    )
    assert (off.harm_alpha, regressed.harm_alpha) == (0.05, pytest.approx(0.04))
    for one, other in zip(off.power.rows, regressed.power.rows, strict=True):
        assert one.power_to_pass == other.power_to_pass
        assert (one.detectable_drop or 0) <= (other.detectable_drop or 0)
    assert off.notes == regressed.notes == ()
    assert "by a sequence, which needs more items" in both.notes[0]


def test_a_metrics_own_alpha_is_for_its_pass() -> None:
    rules = {"a.m": {"max_drop": 0.02, "alpha": 0.01}, "a.n": 0.02}
    found = plan(spec_of(rules), {"a": stand_in(200, scores={"m": [1.0] * 200, "n": [1.0] * 200})})
    strict, usual = found.metrics
    assert (strict.alpha, strict.can_pass, strict.items_needed) == (0.01, False, items_needed(0.02, 0.0, alpha=0.01))
    assert (usual.alpha, usual.can_pass) == (0.05, True)
    drops = {row.detectable_drop for row in found.power.rows if row.discordance == 0.01}
    assert len(drops) == 1, "refusals share the gate's alpha"


def test_alphas_may_differ() -> None:
    found = plan_gate({"a": 0.02, "b": 0.02}, {"a": 500, "b": 500}, discordances=(0.03,), alpha={"a": 0.05, "b": 0.01})
    assert [row.alpha for row in found.rows] == [0.05, 0.01]
    assert found.rows[0].power_to_pass > found.rows[1].power_to_pass == power_to_pass(500, 0.02, 0.03, alpha=0.01)


def test_min_items() -> None:
    found = plan(spec_of({"a.m": {"max_drop": 0.02, "min_items": 900}}), {"a": stand_in(600)})
    assert {row.power_to_pass for row in found.power.rows} == {0.0}
    assert [row.items_for_power for row in found.power.rows] == [900, 900, 1565]
    assert found.warnings == ("the gate cannot PASS: a.m has 600 items, and min_items is 900",)


def test_a_metric_that_nobody_can_count_is_an_upper_bound() -> None:
    found = plan(spec_of({"a.other": 0.02}), {"a": stand_in(600)})
    assert (found.metrics[0].items, found.metrics[0].counted) == (600, "at_most")
    assert found.notes == ("a.other: which items it applies to is not known beforehand; 600 items is an upper bound",)


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02, 0.1])
def test_too_few_items_even_without_flips(margin: float) -> None:
    least = items_without_flips(margin)
    spec = spec_of({"a.m": margin})
    assert plan(spec, {"a": stand_in(least)}).metrics[0].can_pass
    few = plan(spec, {"a": stand_in(least - 1)})
    assert (few.metrics[0].can_pass, few.metrics[0].items_needed) == (False, least)
    (warning,) = few.warnings
    assert warning.startswith(
        f"the gate cannot PASS: a.m has {least - 1:,} items, and a margin of {100 * margin:g} point"
    )
    assert warning.endswith(f"needs at least {least:,} even if no answer changes")


def test_relative_margins_need_the_baseline() -> None:
    spec = spec_of({"a.m": {"relative": 0.02}, "b.m": 0.02})
    half = [1.0, 0.0] * 300
    unknown = plan(spec, {"a": stand_in(600), "b": stand_in(600)})
    assert [(m.margin, m.margin_kind, m.can_pass) for m in unknown.metrics] == [
        (None, "relative", None),
        (0.02, "absolute", True),
    ]
    assert {row.metric for row in unknown.power.rows} == {"b.m"}
    assert unknown.notes == ("a.m: a relative margin is planned when the baseline is known",)
    known = plan(spec, {"a": stand_in(600, scores={"m": half}, measured=True), "b": stand_in(600)})
    assert known.metrics[0].margin == pytest.approx(0.01)
    assert {row.margin for row in known.power.rows if row.metric == "a.m"} == {known.metrics[0].margin}
    assert "1.00 points" in known.notes[0]
    with pytest.raises(DataError, match=r"needs a baseline mean of at least 0\.05; it is 0\.04"):
        plan(spec, {"a": stand_in(100, scores={"m": [1.0] * 4 + [0.0] * 96}, measured=True), "b": stand_in(600)})


def test_what_the_verdict_would_refuse_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="no item has a score"):
        plan(spec_of({"a.m": 0.02}), {"a": stand_in(3, scores={"m": [float("nan")] * 3})})
    with pytest.raises(DataError, match="have no metric 'n'"):
        plan(spec_of({"a.n": 0.02}), {"a": stand_in(3, measured=True)})
    with pytest.raises(DataError, match="no item that is scored has it") as caught:
        plan(spec_of({"a.m": 0.02}, slices=["n_tool"]), {"a": stand_in(3, fields=[{"n_tools": 1}] * 3)})
    assert caught.value.remedy == "did you mean 'n_tools'?"


def test_slices() -> None:
    kinds = ["easy"] * 500 + ["hard"] * 100
    fields = [{"n": k % 10} for k in range(600)]
    slices = ["kind", {"field": "n", "bins": [0, 4], "require": "pass"}, {"field": "prompt_tokens", "bins": [100]}]
    found = plan(spec_of({"a.m": 0.02}, slices=slices), {"a": stand_in(600, kinds=kinds, fields=fields)})
    assert [(part.name, part.items, part.can_pass, part.items_needed) for part in found.slices] == [
        ("a.m[kind=easy]", 500, True, None),
        ("a.m[kind=hard]", 100, False, 149),
        ("a.m[n=up to 0]", 60, False, 149),
        ("a.m[n=over 0, up to 4]", 240, True, None),
        ("a.m[n=over 4]", 300, True, None),
    ]
    assert found.tests == 1 + 5 + 2, "the two bins by prompt length will be tested, too"
    assert found.notes == ("slices by prompt_tokens are planned when the baseline is known",)
    assert len(found.warnings) == 1, "a slice that must pass and cannot; one that need not is only not judged"
    assert "a.m[n=up to 0] has 60 items" in found.warnings[0]
    at = [row for row in found.power.rows if row.discordance == 0.01]
    assert [row.metric for row in at] == ["a.m", "a.m[n=up to 0]", "a.m[n=over 0, up to 4]", "a.m[n=over 4]"]
    assert found.power.all_pass[0.01] == joint([row.power_to_pass for row in at]), "what must pass, together"


def test_items_of_a_source_count_for_less() -> None:
    clusters = [f"c{k // 4}" for k in range(600)]
    alone, together = (plan(spec_of({"a.m": 0.01}), {"a": stand_in(600, clusters=c)}) for c in (None, clusters))
    assert alone.metrics[0].can_pass
    assert (together.metrics[0].can_pass, together.metrics[0].clusters) == (False, 150)
    assert together.metrics[0].items_needed is not None
    assert together.metrics[0].items_needed > 4 * 268
    assert "come from 150 sources" in together.notes[0]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(20, 400),
    margin=st.sampled_from([0.01, 0.02, 0.05, 0.1]),
    size=st.integers(1, 3),
    relative=st.booleans(),
    data=st.data(),
)
def test_can_pass_is_what_the_verdict_says_of_an_unchanged_candidate(
    write_records: Write, n: int, margin: float, size: int, relative: bool, data: st.DataObject
) -> None:
    scores = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)) if relative else [1.0] * n
    if sum(scores) < 0.05 * n:
        return
    kinds = [("x", "y", "z")[k % 3] for k in range(n)]
    clusters = [f"c{k // size}" for k in range(n)] if size > 1 else None
    folder = write_records("a", {"m": scores}, kinds=kinds, clusters=clusters)
    rule = {"relative": margin} if relative else {"max_drop": margin}
    spec = spec_of({"recall.m": rule}, slices=["kind"])
    found = plan(spec, {"recall": PlannedTask(load(folder / "recall.jsonl", with_fields=True), measured=True)})
    verdict = judge(spec, folder, folder)
    assert found.metrics[0].can_pass == (verdict.metric("recall.m").outcome == "PASS")
    assert found.metrics[0].items_needed == verdict.metric("recall.m").items_to_decide
    assert found.tests == verdict.tests_in_family
    for part, judged in zip(found.slices, verdict.slices, strict=True):
        assert (part.name, part.items) == (judged.name, judged.items)
        assert (part.can_pass, part.items_needed) == (judged.outcome == "PASS", judged.items_to_decide)


def test_a_plan_of_twenty_metrics_takes_about_a_second() -> None:
    """Processor time, so that a busy machine does not fail it, with room for a slow one."""
    metrics = {f"t{k}.m": 0.01 + 0.002 * k for k in range(20)}
    tasks = {f"t{k}": stand_in(400 + 37 * k, kinds=["a", "b"] * 200 + ["c"] * 37 * k) for k in range(20)}
    started = time.process_time()
    assert len(plan(spec_of(metrics, slices=["kind"]), tasks).power.rows) == 60
    assert time.process_time() - started < 6  # 1 s on an idle machine
