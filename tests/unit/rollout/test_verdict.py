"""Outcomes of metrics and arms, Holm over both, and margins that stand in the rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sqtool.errors import DataError, UsageError
from sqtool.rollout.rules import DEFAULT_MARGIN, RATES, Metric, Rules, metrics_of, read_rules, with_options
from sqtool.rollout.units import Unit
from sqtool.rollout.verdict import ArmVerdict, Watch


def metric(name: str, margin: float = 0.02, *, good: bool = False, named: bool = False) -> Metric:
    return Metric(name, margin, lambda r: None, good, named)


def watched(rates: dict[str, tuple[float, ...]], metrics: list[Metric], n: int = 6000, seed: int = 0) -> Watch:
    rng = np.random.default_rng(seed)
    watch, names = Watch(metrics, "baseline"), list(rates)
    for arm, draws in zip(rng.integers(len(names), size=n), rng.random((n, len(metrics))), strict=True):
        name = names[arm]
        watch.add(Unit(name, tuple(float(d < r) for d, r in zip(draws, rates[name], strict=True))))
    return watch


def outcomes(verdict: ArmVerdict) -> dict[str, str]:
    return {v.metric.name: v.outcome for v in verdict.metrics}


def test_harm_no_harm_and_neither() -> None:
    metrics = [metric("correction"), metric("retry"), metric("cancellation", 0.001)]
    watch = watched({"baseline": (0.05, 0.01, 0.05), "b": (0.15, 0.01, 0.05)}, metrics)
    (verdict,) = watch.judge(["b"], 0.05)
    assert outcomes(verdict) == {"correction": "HARM", "retry": "NO_HARM", "cancellation": "KEEP_WATCHING"}
    assert verdict.outcome == "HARM"
    assert verdict.metrics[0].reason == "a rise beyond the margin is shown"
    assert verdict.metrics[1].reason == "a rise by the margin is ruled out"


def test_a_small_rise_that_is_shown_is_within_the_margin() -> None:
    watch = watched({"baseline": (0.0,), "b": (0.01,)}, [metric("retry", 0.05)])
    (verdict,) = watch.judge(["b"], 0.05)
    assert (verdict.outcome, verdict.metrics[0].reason) == ("NO_HARM", "a rise is shown, within the margin")


def test_acceptance_is_told_as_acceptance() -> None:
    watch = watched({"baseline": (0.3,), "b": (0.5,)}, [metric("acceptance", good=True)])
    (verdict,) = watch.judge(["b"], 0.05)
    told = verdict.metrics[0].to_dict()
    assert (told["outcome"], told["worse_is"], told["reason"]) == ("HARM", "lower", "a drop beyond the margin is shown")
    assert told["baseline"] == pytest.approx(0.7, abs=0.03)
    assert told["change"] == pytest.approx(told["candidate"] - told["baseline"])
    assert told["interval"][0] < told["change"] < told["interval"][1] < 0


def test_holm_counts_declared_candidates_and_all_metrics() -> None:
    metrics = [metric("correction"), metric("retry")]
    watch = watched({"baseline": (0.05, 0.02), "b": (0.09, 0.02)}, metrics, n=3000, seed=4)
    alone = watch.judge(["b"], 0.05)[0].metrics[0]
    among = watch.judge(["b"], 0.05, candidates=10)[0].metrics[0]
    assert alone.p_adjusted == pytest.approx(2 * alone.evidence.p_harm)
    assert among.p_adjusted == pytest.approx(20 * alone.evidence.p_harm)
    assert among.evidence.lower < alone.evidence.lower
    assert among.evidence.upper > alone.evidence.upper


def test_an_arm_without_units_is_undecided() -> None:
    watch = watched({"baseline": (0.05,), "b": (0.05,)}, [metric("retry")], n=10)
    late = watch.judge(["b", "late"], 0.05)[1]
    assert (late.outcome, late.metrics[0].reason) == ("KEEP_WATCHING", "no matched units yet")


def test_metrics_without_data_are_left_out_unless_named() -> None:
    for named, outcome in ((False, "NO_HARM"), (True, "KEEP_WATCHING")):
        watch = Watch([metric("retry"), metric("correction", named=named)], "baseline")
        for number in range(3000):
            watch.add(Unit("b" if number % 2 else "baseline", (0.0, None)))
        (verdict,) = watch.judge(["b"], 0.05, known=[True, False])
        assert verdict.outcome == outcome
        assert len(verdict.metrics) == 1 + named


def test_three_arms_are_each_held_to_the_baseline() -> None:
    watch = watched({"baseline": (0.05,), "good": (0.05,), "bad": (0.25,)}, [metric("retry", 0.04)], n=9000)
    assert [v.outcome for v in watch.judge(["bad", "good"], 0.05)] == ["HARM", "NO_HARM"]


# ---- rules


def lines(place: tuple[str | int, ...]) -> int:
    return len(place)


def test_default_rules() -> None:
    metrics = metrics_of(Rules())
    assert [m.name for m in metrics] == list(RATES)
    assert {m.margin for m in metrics} == {DEFAULT_MARGIN}
    assert [m.good for m in metrics] == [False, True, False, False, False]
    assert not any(m.named for m in metrics)


def test_rules_from_a_file() -> None:
    value = {"alpha": 0.1, "margins": {"correction": 0.01}, "slo": {"e2e_ms": {"limit": 2000}}, "candidates": 3}
    rules = read_rules(value, "r.yaml", lines)
    assert [(m.name, m.margin, m.named, m.limit) for m in metrics_of(rules)] == [
        ("correction", 0.01, True, None),
        ("slo.e2e_ms", 0.02, True, 2000),
    ]


@pytest.mark.parametrize(
    ("value", "message", "remedy"),
    [
        ({"alfa": 0.1}, "r.yaml:1: alfa: unknown key", "did you mean 'alpha'?"),
        ({"margins": {"corection": 0.1}}, "r.yaml:2: margins.corection: unknown key", "did you mean 'correction'?"),
        ({"margins": {"retry": 2}}, "r.yaml:2: margins.retry: Input should be less than 1", ""),
        ({"slo": {"e2e": {"limit": 1}}}, "r.yaml:2: slo.e2e: unknown key", "did you mean 'e2e_ms'?"),
        ({"slo": {"e2e_ms": {"limt": 1, "limit": 1}}}, "unknown key", "did you mean 'limit'?"),
        ([], "expected keys and values", "Keys: "),
    ],
)
def test_rules_that_are_wrong(value: object, message: str, remedy: str) -> None:
    with pytest.raises(DataError) as error:
        read_rules(value, "r.yaml", lines)
    assert message in error.value.message
    assert error.value.remedy.startswith(remedy)


def test_options_go_over_the_file() -> None:
    rules = with_options(
        Rules.model_validate({"slo": {"e2e_ms": {"limit": 10}}}),
        alpha=0.01,
        window=5,
        margins=["correction=0.01", "retry=off", "slo.e2e_ms=0.05", "slo.ttft_ms=0.04"],
        slos=["ttft_ms=300"],
    )
    assert (rules.alpha, rules.window_minutes) == (0.01, 5)
    assert {m.name: (m.margin, m.limit) for m in metrics_of(rules)} == {
        "correction": (0.01, None),
        "acceptance": (0.02, None),
        "cancellation": (0.02, None),
        "failure": (0.02, None),
        "slo.e2e_ms": (0.05, 10),
        "slo.ttft_ms": (0.04, 300),
    }


def named(rules: Rules) -> list[str]:
    return [m.name for m in metrics_of(rules) if m.named]


def test_only_what_was_written_is_named() -> None:
    chosen = with_options(Rules(), margins=["failure=0.02"])
    assert [m.name for m in metrics_of(chosen)] == list(RATES)
    assert named(chosen) == ["failure"]
    assert named(with_options(Rules(), margins=["retry=off"])) == []
    assert named(with_options(chosen, alpha=0.1)) == ["failure"]
    assert named(with_options(chosen, margins=["retry=0.1", "failure=off"])) == ["retry"]
    assert named(with_options(Rules(), alpha=0.1, slos=["e2e_ms=300"])) == ["slo.e2e_ms"]
    of_a_file = read_rules({"margins": {"correction": 0.01, "retry": 0.02}}, "r.yaml", lines)
    both = with_options(of_a_file, margins=["failure=0.02", "retry=off"])
    assert named(both) == ["correction", "failure"] == list(both.margins)
    assert named(Rules.model_validate(chosen.model_dump())) == list(RATES), "a file that writes all of them"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margins": ["corection=0.1"]}, "unknown name 'corection'"),
        ({"margins": ["retry"]}, "expected NAME=NUMBER"),
        ({"margins": ["retry=much"]}, "'much' is no number"),
        ({"margins": ["retry=3"]}, "margins.retry: Input should be less than 1"),
        ({"slos": ["p99=3"]}, "unknown name 'p99'"),
        ({"alpha": 0.9}, "alpha: "),
        ({"window": 0}, "window_minutes: "),
    ],
)
def test_options_that_are_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_options(Rules(), **options)  # type: ignore[arg-type]


def test_rules_that_judge_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is judged"):
        metrics_of(with_options(Rules(), margins=[f"{name}=off" for name in RATES]))
